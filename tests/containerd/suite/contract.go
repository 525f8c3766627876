package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
)

// pair starts the daemon, and beside it containerd's own native snapshotter in this process: what one does, the other
// does. Both hold the snapshots that the cases speak of.
func pair(t *testing.T) (*daemon, snapshots.Snapshotter) {
	theirs, err := native.NewSnapshotter(directory(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	d := start(t)
	for _, s := range []snapshots.Snapshotter{d.as(client), theirs} {
		for _, step := range []call{
			prepare("a", ""),
			commit("base", "a"),
			prepare("b", "base"),
			commit("child", "b", label("one", "1")),
			prepare("active", ""),
			prepare("active on base", "base", label("one", "1"), label("two/2.b", "2")),
			view("view", "base", label("one", "1")),
		} {
			if err := step.make(t.Context(), s); err != nil {
				t.Fatal(step.name, err)
			}
		}
	}
	return d, theirs
}

// A call of one of the methods.
type call struct {
	name string
	make func(context.Context, snapshots.Snapshotter) error
}

func prepare(key, parent string, opts ...snapshots.Opt) call {
	return call{fmt.Sprintf("Prepare(%.20q, %q)", key, parent), func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.Prepare(ctx, key, parent, opts...)
		return err
	}}
}

func view(key, parent string, opts ...snapshots.Opt) call {
	return call{fmt.Sprintf("View(%.20q, %q)", key, parent), func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.View(ctx, key, parent, opts...)
		return err
	}}
}

func commit(name, key string, opts ...snapshots.Opt) call {
	return call{fmt.Sprintf("Commit(%.20q, %q)", name, key), func(ctx context.Context, s snapshots.Snapshotter) error {
		return s.Commit(ctx, name, key, opts...)
	}}
}

func stat(key string) call {
	return call{fmt.Sprintf("Stat(%q)", key), func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.Stat(ctx, key)
		return err
	}}
}

func usage(key string) call {
	return call{fmt.Sprintf("Usage(%q)", key), func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.Usage(ctx, key)
		return err
	}}
}

func mounts(key string) call {
	return call{fmt.Sprintf("Mounts(%q)", key), func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.Mounts(ctx, key)
		return err
	}}
}

func remove(key string) call {
	return call{fmt.Sprintf("Remove(%q)", key), func(ctx context.Context, s snapshots.Snapshotter) error {
		return s.Remove(ctx, key)
	}}
}

func update(name string, labels map[string]string, paths ...string) call {
	return call{fmt.Sprintf("Update(%q, %q)", name, paths), func(ctx context.Context, s snapshots.Snapshotter) error {
		_, err := s.Update(ctx, snapshots.Info{Name: name, Labels: labels}, paths...)
		return err
	}}
}

func walk(filters ...string) call {
	return call{fmt.Sprintf("Walk(%q)", filters), func(ctx context.Context, s snapshots.Snapshotter) error {
		return s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, filters...)
	}}
}

// label adds one; snapshots.WithLabels replaces them all.
func label(key, value string) snapshots.Opt {
	return func(info *snapshots.Info) error {
		if info.Labels == nil {
			info.Labels = map[string]string{}
		}
		info.Labels[key] = value
		return nil
	}
}

// labels is a number of labels of so many bytes each, key and value together.
func labels(number, size int) snapshots.Opt {
	return func(info *snapshots.Info) error {
		for i := range number {
			key := fmt.Sprintf("%04d", i)
			label(key, strings.Repeat("v", size-len(key)))(info)
		}
		return nil
	}
}

var kinds = map[string]func(error) bool{
	"Aborted":            errdefs.IsAborted,
	"AlreadyExists":      errdefs.IsAlreadyExists,
	"Canceled":           errdefs.IsCanceled,
	"Conflict":           errdefs.IsConflict,
	"DataLoss":           errdefs.IsDataLoss,
	"DeadlineExceeded":   errdefs.IsDeadlineExceeded,
	"FailedPrecondition": errdefs.IsFailedPrecondition,
	"Internal":           errdefs.IsInternal,
	"InvalidArgument":    errdefs.IsInvalidArgument,
	"NotFound":           errdefs.IsNotFound,
	"NotImplemented":     errdefs.IsNotImplemented,
	"NotModified":        errdefs.IsNotModified,
	"OutOfRange":         errdefs.IsOutOfRange,
	"PermissionDenied":   errdefs.IsPermissionDenied,
	"ResourceExhausted":  errdefs.IsResourceExhausted,
	"Unauthorized":       errdefs.IsUnauthorized,
	"Unavailable":        errdefs.IsUnavailable,
	"Unknown":            errdefs.IsUnknown,
}

// kind names the kinds of error that err is; there should be one.
func kind(err error) string {
	if err == nil {
		return "OK"
	}
	var is []string
	for name, matches := range kinds {
		if matches(err) {
			is = append(is, name)
		}
	}
	slices.Sort(is)
	return strings.Join(is, " ")
}

// testKinds reads each error that the daemon can give, from one whose Stat raises the one that it is asked for.
func testKinds(t *testing.T) {
	s := start(t).as(client)
	for raised, want := range map[string]string{
		"NotFoundError":           "NotFound",
		"AlreadyExistsError":      "AlreadyExists",
		"InvalidArgumentError":    "InvalidArgument",
		"FailedPreconditionError": "FailedPrecondition",
		"ResourceExhaustedError":  "ResourceExhausted",
		"UnavailableError":        "Unavailable",
		"StoreHeldError":          "Unavailable",
		"DataLossError":           "DataLoss",
		"NotSupportedError":       "NotImplemented",
		"Error":                   "Unknown",
		"ZeroDivisionError":       "Internal",
	} {
		_, err := s.Stat(t.Context(), raised)
		if kind(err) != want || !strings.Contains(err.Error(), "100 %25 of thé text") {
			t.Errorf("%s is read as %q: %q", raised, kind(err), err)
		}
	}
}

// all is what Walk tells of every snapshot.
func all(t *testing.T, s snapshots.Snapshotter) map[string]snapshots.Info {
	found := map[string]snapshots.Info{}
	if err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		found[info.Name] = info
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// testErrors holds each error to its kind, and to the one that containerd's own snapshotter gives.
func testErrors(t *testing.T) {
	const (
		exists   = "AlreadyExists"
		invalid  = "InvalidArgument"
		missing  = "NotFound"
		state    = "FailedPrecondition"
		ok       = "OK"
		unmapped = "" // an error of another package, as it is
	)
	long := strings.Repeat("k", 32_769)
	d, theirs := pair(t)
	ours := d.as(client)
	for _, c := range []struct {
		call
		want   string
		native string
	}{
		{prepare("active", ""), exists, exists},
		{prepare("base", ""), exists, exists},
		{view("view", ""), exists, exists},
		{prepare("new", "none"), missing, missing},
		{view("new", "none"), missing, missing},
		{prepare("new", "active"), invalid, invalid},
		{view("new", "view"), invalid, invalid},
		{prepare("active", "none"), missing, missing},
		{prepare("active", "active"), invalid, invalid},
		{prepare("any\x00 /text\né", ""), ok, ok},
		{stat("any\x00 /text\né"), ok, ok},
		{prepare("", ""), invalid, unmapped},
		{view("", ""), invalid, unmapped},
		{prepare(long, ""), invalid, ok},
		{prepare("empty label", "", label("", "v")), invalid, unmapped},

		{commit("new", "none"), missing, missing},
		{commit("base", "none"), missing, missing},
		{commit("base", "active"), exists, exists},
		{commit("active on base", "active"), exists, exists},
		{commit("active", "active"), exists, exists},
		{commit("new", "view"), state, unmapped}, // theirs looks for a directory that its views lack
		{commit("new", "base"), state, state},
		{commit("", "active"), invalid, unmapped},
		{commit(long, "none"), invalid, missing},
		{commit("new", "active on base", snapshots.WithParent("child")), invalid, invalid},

		{stat("none"), missing, missing},
		{stat(""), missing, missing},
		{usage("none"), missing, missing},
		{mounts("none"), missing, missing},
		{mounts("base"), state, state},
		{remove("none"), missing, missing},
		{remove("base"), state, state},
		{update("none", nil), missing, missing},
		{update("none", nil, "parent"), missing, missing},
		{update("base", nil, "parent"), invalid, invalid},
		{update("base", map[string]string{"": "v"}), invalid, unmapped},
		{walk("name=base"), invalid, invalid},
		{walk("name==/base"), invalid, invalid},
		{walk("kind==active", "name=="), invalid, invalid},

		// The caps are containerd's own on each label, and 1 MiB on all of a snapshot.
		{prepare("fits", "", labels(1, 4096)), ok, ok},
		{prepare("large", "", labels(1, 4097)), invalid, ok},
		{view("large view", "", labels(1, 4097)), invalid, ok},
		{prepare("many", "", labels(1001, 5)), ok, ok},
		{prepare("pieces", "", labels(20, 4096)), ok, ok},
		{prepare("more than 1 MiB", "", labels(300, 4096)), invalid, ok},
		{update("base", map[string]string{"large": strings.Repeat("v", 4096)}), invalid, ok},
		{commit("large commit", "fits", labels(1, 4097)), invalid, ok},

		// No rebasing: a parent's content would be missing.
		{commit("same parent", "active on base", snapshots.WithParent("base")), ok, ok},
		{commit("parent none", "active", snapshots.WithParent("none")), invalid, missing},
		{commit("rebased", "active", snapshots.WithParent("base")), invalid, ok},
	} {
		before := all(t, ours)
		err := c.make(t.Context(), ours)
		if kind(err) != c.want {
			t.Errorf("%s: %q: %.200v; it has to be %q", c.name, kind(err), err, c.want)
		}
		if after := all(t, ours); err != nil && fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s failed, and changed %v to %v", c.name, before, after)
		}
		if err := c.make(t.Context(), theirs); kind(err) != c.native {
			t.Errorf("%s: containerd's own gives %q: %.200v", c.name, kind(err), err)
		}
	}
}

// testUpdate compares what every form of field paths does with what it does to containerd's own snapshotter.
func testUpdate(t *testing.T) {
	given := map[string]string{"one": "uno", "new/a.b": "n", "empty": ""}
	d, theirs := pair(t)
	ours := d.as(client)
	compare := func(step call, key string) {
		before, err := ours.Stat(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		got, want := kind(step.make(t.Context(), ours)), kind(step.make(t.Context(), theirs))
		if got != want {
			t.Errorf("%s: %q, and containerd's own %q", step.name, got, want)
		}
		after, err1 := ours.Stat(t.Context(), key)
		expected, err2 := theirs.Stat(t.Context(), key)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(after.Labels, expected.Labels) {
			t.Errorf("%s: labels %q, and containerd's own %q", step.name, after.Labels, expected.Labels)
		}
		if (got == "OK") != after.Updated.After(before.Updated) {
			t.Errorf("%s: %s, and from %s to %s", step.name, got, before.Updated, after.Updated)
		}
		after.Labels, after.Updated = before.Labels, before.Updated
		if fmt.Sprint(before) != fmt.Sprint(after) {
			t.Errorf("%s changed %v to %v", step.name, before, after)
		}
	}
	for _, key := range []string{"child", "active on base", "view"} {
		for _, paths := range [][]string{
			{"labels.one"}, {"labels.new/a.b"}, {"labels.empty"}, {"labels.none"}, {"labels.containerd.io/gc.root"},
			{"labels.one", "labels.new/a.b"}, {"labels", "labels.two/2.b"}, {"labels.one", "labels"},
			{"labels.one", "labels.one"}, {"labels"}, {},
			{"name"}, {"parent"}, {"kind"}, {"created"}, {"updated"}, {"Labels"}, {"labelsone"}, {"labels.one", "parent"},
		} {
			compare(update(key, map[string]string{"one": "1", "two/2.b": "2", "three": "3"}), key)
			compare(update(key, given, paths...), key)
			compare(update(key, nil, paths...), key)
		}
	}
	// containerd's own client sends a mask even when it is empty; others may send none.
	sent := &api.UpdateSnapshotRequest{Snapshotter: client, Info: &api.Info{Name: "view", Labels: given}}
	answer, err := api.NewSnapshotsClient(d.connection).Update(t.Context(), sent)
	if err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"one": "uno", "new/a.b": "n"}; !maps.Equal(answer.Info.Labels, want) {
		t.Errorf("without a mask: labels %q", answer.Info.Labels)
	}
}

// testFilters compares what filters match with what they match in containerd's own snapshotter.
func testFilters(t *testing.T) {
	d, theirs := pair(t)
	ours := d.as(client)
	for _, filters := range [][]string{
		{}, {""}, {"kind==active"}, {"kind!=active"}, {"kind==Active"}, {"kind"}, {"name==base"}, {`name=="active on base"`},
		{"name~=/^a/"}, {"name~=b.s"}, {"name~=("}, {`parent==""`}, {"parent==base"}, {"parent!=base"}, {"parent"},
		{"labels.one"}, {"labels.one==1"}, {`labels."two/2.b"==2`}, {"labels.none"}, {`labels.none!=x`}, {"unknown"},
		{"kind==view", "name==base"}, {"kind==active,parent==base"}, {"kind==view,name==base"}, {"", "name==base"},
		{"name"}, {"created"}, {"=="}, {"name=="}, {"name==a b"}, {"name,"}, {"labels"}, {"labels.one=1"},
	} {
		names := func(s snapshots.Snapshotter) string {
			var found []string
			err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
				found = append(found, info.Name)
				return nil
			}, filters...)
			slices.Sort(found)
			return fmt.Sprintf("%q %s", found, kind(err))
		}
		if got, want := names(ours), names(theirs); got != want {
			t.Errorf("Walk(%q): %s, and containerd's own %s", filters, got, want)
		}
	}
}

// testInFlight has many clients at once, on one connection, each with a chain of snapshots on the same base.
func testInFlight(t *testing.T) {
	const clients = 300
	s := start(t).as(client)
	for _, c := range []call{prepare("a", ""), commit("base", "a")} {
		if err := c.make(t.Context(), s); err != nil {
			t.Fatal(c.name, err)
		}
	}
	var group errgroup.Group
	for i := range clients {
		key := func(name string) string { return fmt.Sprintf("%d/%s", i, name) }
		group.Go(func() error {
			for _, c := range []call{
				prepare(key("active"), "base"), mounts(key("active")), usage(key("active")),
				commit(key("committed"), key("active"), label("one", "1")), stat(key("committed")),
				view(key("view"), key("committed")), walk(`labels.one,name=="` + key("committed") + `"`),
				update(key("committed"), nil, "labels.one"), usage(key("committed")),
				remove(key("view")), remove(key("committed")),
			} {
				if err := c.make(t.Context(), s); err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
	if left := all(t, s); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}
