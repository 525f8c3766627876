package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
)

// testWalk lists thousands of snapshots, of which some have as many labels as a record can hold on nodes of 64 KiB.
func testWalk(t *testing.T) {
	const (
		plain    = 2000
		labelled = 200
		batch    = 500
	)
	ctx := t.Context()
	d := start(t)
	s := d.as(client)
	if found := all(t, s); len(found) > 0 {
		t.Errorf("a new store holds %v", found)
	}

	expected := map[string]snapshots.Info{}
	var group errgroup.Group
	group.SetLimit(32)
	for i := range plain + labelled {
		key := fmt.Sprintf("snapshot/%d", i)
		opts := []snapshots.Opt{label("number", fmt.Sprint(i))}
		if i >= plain {
			opts = append(opts, labels(7, 4096))
		}
		info := snapshots.Info{Kind: snapshots.KindView, Name: key}
		for _, opt := range opts {
			opt(&info)
		}
		expected[key] = info
		group.Go(func() error { return view(key, "", opts...).make(ctx, s) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}

	// While nobody reads what it has to say, a walk is in nobody's way, and it tells of the moment when it began.
	stream, err := api.NewSnapshotsClient(d.connection).List(ctx, &api.ListSnapshotsRequest{Snapshotter: client})
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []call{prepare("later", ""), stat("later"), mounts("later"), remove("later"), walk()} {
		if err := step.make(ctx, s); err != nil {
			t.Errorf("%s during a walk: %v", step.name, err)
		}
	}
	found := map[string]*api.Info{}
	for answer := first; ; {
		if len(answer.Info) > batch || proto.Size(answer) > defaults.DefaultMaxRecvMsgSize {
			t.Errorf("a message of %d snapshots, %d bytes", len(answer.Info), proto.Size(answer))
		}
		for _, info := range answer.Info {
			found[info.Name] = info
		}
		if answer, err = stream.Recv(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if names := slices.Sorted(maps.Keys(found)); !slices.Equal(names, slices.Sorted(maps.Keys(expected))) {
		t.Errorf("%d snapshots: %.1000q", len(names), names)
	}
	for key, info := range found {
		if !maps.Equal(info.Labels, expected[key].Labels) {
			t.Errorf("labels of %q are not what they were made with", key)
		}
	}

	// One that ends early returns the callback's error, and leaves nothing behind that would hold up the next.
	enough := errors.New("enough")
	for range 20 {
		seen := 0
		if err := s.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
			if seen++; seen == 150 {
				return enough
			}
			_, err := s.Stat(ctx, info.Name)
			return err
		}); err != enough {
			t.Errorf("a walk that has enough returns %v", err)
		}
	}
	if found := all(t, s); len(found) != plain+labelled {
		t.Errorf("%d snapshots after that", len(found))
	}
}
