// Command cri calls a method of the CRI, as a kubelet does, with a request in JSON from standard input, and
// writes the response in JSON to standard output.
//
//	cri /run/containerd/containerd.sock RuntimeService/RunPodSandbox < request.json
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := call(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func call(socket, method string) error {
	descriptor, err := protoregistry.GlobalFiles.FindDescriptorByName(
		protoreflect.FullName("runtime.v1." + strings.ReplaceAll(method, "/", ".")))
	if err != nil {
		return err
	}
	request := dynamicpb.NewMessage(descriptor.(protoreflect.MethodDescriptor).Input())
	response := dynamicpb.NewMessage(descriptor.(protoreflect.MethodDescriptor).Output())
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if err := protojson.Unmarshal(text, request); err != nil {
		return err
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := connection.Invoke(context.Background(), "/runtime.v1."+method, request, response); err != nil {
		return err
	}
	text, err = protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(response)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}
