// containerd's own snapshotters, and its client of any proxy snapshotter, for benchmarks to compare with.
//
//	peers serve KIND ROOT ADDRESS   the snapshotter behind containerd's proxy service on a unix socket
//	peers drive KIND ROOT           the snapshotter in process, on command
//	peers drive socket ADDRESS      the snapshotter at a unix socket, on command
//
// KIND is btrfs or overlayfs. Each line of stdin is a command, its words separated by tabs. The answer is a line of
// words separated by tabs: the nanoseconds of each operation, unless noted below. Any error ends the process.
//
//	prepare, view      CLIENTS PREFIX FIRST COUNT PARENT
//	commit             CLIENTS PREFIX FIRST COUNT NAME-PREFIX
//	remove, stat, usage, update
//	                   CLIENTS PREFIX FIRST COUNT
//	walk, cleanup
//	pairs              CLIENTS SECONDS PREFIX PARENT: number of prepares with a remove, and nanoseconds of all
//	mounts             KEY: type, source and options of each mount
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/snapshots/btrfs"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	label    = "containerd.io/benchmark"
	patience = 10 * time.Second // for a server to listen
)

func main() {
	if len(os.Args) == 5 && os.Args[1] == "serve" {
		check(serve(open(os.Args[2], os.Args[3]), os.Args[4]))
	}
	if len(os.Args) == 4 && os.Args[1] == "drive" {
		drive(open(os.Args[2], os.Args[3]))
		return
	}
	check(errors.New("serve KIND ROOT ADDRESS, or drive KIND WHERE"))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func open(kind, where string) snapshots.Snapshotter {
	var opened snapshots.Snapshotter
	var err error
	switch kind {
	case "btrfs":
		opened, err = btrfs.NewSnapshotter(where)
	case "overlayfs":
		// The default in containerd's configuration.
		opened, err = overlay.NewSnapshotter(where, overlay.AsynchronousRemove)
	case "socket":
		opened, err = dial(where)
	default:
		err = fmt.Errorf("no snapshotter is called %q", kind)
	}
	check(err)
	return opened
}

func dial(address string) (snapshots.Snapshotter, error) {
	// Wait for the socket here, because gRPC backs off exponentially between attempts.
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		connection, err := net.Dial("unix", address)
		if err == nil {
			connection.Close()
			break
		}
		if time.Since(begin) > patience {
			return nil, err
		}
	}
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), "benchmark"), nil
}

func serve(snapshotter snapshots.Snapshotter, address string) error {
	listener, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(snapshotter))
	return server.Serve(listener)
}

type operation func(ctx context.Context, key string) error

func drive(snapshotter snapshots.Snapshotter) {
	ctx := namespaces.WithNamespace(context.Background(), "benchmark")
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, words, _ := strings.Cut(lines.Text(), "\t")
		fmt.Println(strings.Join(answer(ctx, snapshotter, verb, strings.Split(words, "\t")), "\t"))
	}
}

func answer(ctx context.Context, snapshotter snapshots.Snapshotter, verb string, words []string) []string {
	switch verb {
	case "walk":
		ignore := func(context.Context, snapshots.Info) error { return nil }
		return texts([]int64{timed(func() error { return snapshotter.Walk(ctx, ignore) })})
	case "cleanup":
		return texts([]int64{timed(func() error { return cleanup(ctx, snapshotter) })})
	case "mounts":
		mounts, err := snapshotter.Mounts(ctx, words[0])
		check(err)
		var described []string
		for _, mount := range mounts {
			described = append(described, mount.Type, mount.Source, strings.Join(mount.Options, ","))
		}
		return described
	case "pairs":
		return texts(pairs(ctx, snapshotter, number(words[0]), number(words[1]), words[2], words[3]))
	}
	clients, prefix, first, count := number(words[0]), words[1], number(words[2]), number(words[3])
	call := called(snapshotter, verb, prefix, words[4:])
	return texts(each(ctx, clients, prefix, first, count, call))
}

func called(snapshotter snapshots.Snapshotter, verb, prefix string, words []string) operation {
	switch verb {
	case "prepare":
		return func(ctx context.Context, key string) error {
			_, err := snapshotter.Prepare(ctx, key, words[0])
			return err
		}
	case "view":
		return func(ctx context.Context, key string) error {
			_, err := snapshotter.View(ctx, key, words[0])
			return err
		}
	case "commit":
		return func(ctx context.Context, key string) error {
			return snapshotter.Commit(ctx, words[0]+strings.TrimPrefix(key, prefix), key)
		}
	case "remove":
		return snapshotter.Remove
	case "stat":
		return func(ctx context.Context, key string) error {
			_, err := snapshotter.Stat(ctx, key)
			return err
		}
	case "usage":
		return func(ctx context.Context, key string) error {
			_, err := snapshotter.Usage(ctx, key)
			return err
		}
	case "update":
		return func(ctx context.Context, key string) error {
			info := snapshots.Info{Name: key, Labels: map[string]string{label: time.Now().String()}}
			_, err := snapshotter.Update(ctx, info, "labels."+label)
			return err
		}
	}
	check(fmt.Errorf("no command is called %q", verb))
	return nil
}

// cleanup does nothing for a snapshotter that destroys at once.
func cleanup(ctx context.Context, snapshotter snapshots.Snapshotter) error {
	cleaner, ok := snapshotter.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	if err := cleaner.Cleanup(ctx); !errdefs.IsNotImplemented(err) {
		return err
	}
	return nil
}

// each makes call for count keys, spread over concurrent clients.
func each(ctx context.Context, clients int, prefix string, first, count int, call operation) []int64 {
	times := make([]int64, count)
	var next atomic.Int64
	atOnce(clients, func(int) {
		for i := int(next.Add(1)) - 1; i < count; i = int(next.Add(1)) - 1 {
			times[i] = timed(func() error { return call(ctx, prefix+"-"+strconv.Itoa(first+i)) })
		}
	})
	return times
}

func pairs(ctx context.Context, snapshotter snapshots.Snapshotter, clients, seconds int, prefix, parent string) []int64 {
	var done atomic.Int64
	begin := time.Now()
	end := begin.Add(time.Duration(seconds) * time.Second)
	atOnce(clients, func(client int) {
		for i := 0; time.Now().Before(end); i++ {
			key := fmt.Sprintf("%s-%d-%d", prefix, client, i)
			_, err := snapshotter.Prepare(ctx, key, parent)
			check(err)
			check(snapshotter.Remove(ctx, key))
			done.Add(1)
		}
	})
	return []int64{done.Load(), time.Since(begin).Nanoseconds()}
}

func atOnce(clients int, run func(client int)) {
	var group sync.WaitGroup
	for client := range clients {
		group.Go(func() { run(client) })
	}
	group.Wait()
}

func timed(call func() error) int64 {
	begin := time.Now()
	check(call())
	return time.Since(begin).Nanoseconds()
}

func number(word string) int {
	value, err := strconv.Atoi(word)
	check(err)
	return value
}

func texts(values []int64) []string {
	words := make([]string, len(values))
	for i, value := range values {
		words[i] = strconv.FormatInt(value, 10)
	}
	return words
}
