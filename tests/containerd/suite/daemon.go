package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// client is the name of the plugin, which every request carries.
const client = "suite"

// A daemon on a store of its own.
type daemon struct {
	process    *exec.Cmd
	output     bytes.Buffer
	exited     chan error
	connection *grpc.ClientConn
}

// serve starts a daemon on root, and returns once it has answered.
func serve(ctx context.Context, root string) (*daemon, error) {
	address := filepath.Join(filepath.Dir(root), "socket")
	connection, err := grpc.NewClient("unix://"+address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, MaxDelay: 10 * time.Millisecond},
			MinConnectTimeout: time.Minute,
		}),
		grpc.WithDefaultCallOptions(
			grpc.WaitForReady(true),
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize),
		))
	if err != nil {
		return nil, err
	}
	arguments := append(flag.Args(), "--root", root, "--address", address)
	d := &daemon{
		process:    exec.Command(arguments[0], arguments[1:]...),
		exited:     make(chan error, 1),
		connection: connection,
	}
	d.process.Stdout, d.process.Stderr = &d.output, &d.output
	if err := d.process.Start(); err != nil {
		return nil, err
	}
	go func() {
		d.exited <- d.process.Wait()
		connection.Close() // ends what waits for an answer
	}()
	if _, err := d.as(client).Stat(ctx, "nothing"); !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("first answer: %w; %w", err, d.stop())
	}
	return d, nil
}

// as is the daemon's snapshotter for the client of that name.
func (d *daemon) as(name string) snapshots.Snapshotter {
	return proxy.NewSnapshotter(api.NewSnapshotsClient(d.connection), name)
}

// stop ends the daemon, which has to exit with 0.
func (d *daemon) stop() error {
	d.process.Process.Signal(syscall.SIGTERM)
	if err := <-d.exited; err != nil {
		return fmt.Errorf("daemon: %w\n%s", err, &d.output)
	}
	return nil
}

// start is serve for a test, until its end.
func start(t *testing.T) *daemon {
	d, err := serve(t.Context(), filepath.Join(directory(t), "root"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// directory is like t.TempDir, but nobody minds subvolumes in it.
func directory(t *testing.T) string {
	path, err := os.MkdirTemp("", "case-")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// testContainerd runs containerd's own suite.
func testContainerd(t *testing.T) {
	testsuite.SnapshotterSuite(t, client, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		d, err := serve(ctx, root)
		if err != nil {
			return nil, nil, err
		}
		return d.as(client), d.stop, nil
	})
}
