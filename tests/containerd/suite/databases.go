package main

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	bolt "go.etcd.io/bbolt"
)

// A database is one containerd's: what it knows of the snapshots of a backend.
type database struct {
	db          *metadata.DB
	snapshotter snapshots.Snapshotter
	ctx         context.Context // with a namespace, and a lease that holds what is made
}

// open opens the database in path, whose snapshotter has that name; it is made when it is not there.
func open(t *testing.T, path, name string, backend snapshots.Snapshotter) *database {
	ctx := namespaces.WithNamespace(t.Context(), "default")
	content, err := local.NewStore(filepath.Join(path, "content"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := bolt.Open(filepath.Join(path, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	db := metadata.NewDB(file, content, map[string]snapshots.Snapshotter{name: backend})
	t.Cleanup(func() { db.Close() })
	if err := db.Init(ctx); err != nil {
		t.Fatal(err)
	}
	lease, err := metadata.NewLeaseManager(db).Create(ctx, leases.WithRandomID())
	if err != nil {
		t.Fatal(err)
	}
	return &database{db, db.Snapshotter(name), leases.WithLease(ctx, lease.ID)}
}

// do makes calls that have to succeed.
func (d *database) do(t *testing.T, calls ...call) {
	for _, c := range calls {
		if err := c.make(d.ctx, d.snapshotter); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
}

// collect removes what has that key, as an excuse, and then what the database does not know.
func (d *database) collect(t *testing.T, key string) {
	d.do(t, remove(key))
	if _, err := d.db.GarbageCollect(d.ctx); err != nil {
		t.Fatal(err)
	}
}

// some are the calls that make snapshots of each kind, with such keys.
func some(prefix string) []call {
	return []call{
		prepare(prefix+"a", ""), commit(prefix+"base", prefix+"a"),
		prepare(prefix+"b", prefix+"base"), commit(prefix+"child", prefix+"b"),
		prepare(prefix+"active", prefix+"child"), prepare(prefix+"excuse", ""), view(prefix+"view", prefix+"base"),
	}
}

// moved is a database with some snapshots elsewhere, whose snapshotter of that name is then given another backend.
func moved(t *testing.T, name, prefix string, backend snapshots.Snapshotter) *database {
	path := directory(t)
	before := open(t, path, name, start(t).as(name))
	before.do(t, some(prefix)...)
	before.db.Close()
	return open(t, path, name, backend)
}

// keys are those in a backend, in order.
func keys(t *testing.T, backend snapshots.Snapshotter) []string {
	return slices.Sorted(maps.Keys(all(t, backend)))
}

// testOtherName gives the store of one database to another one whose snapshotter has another name. It may change
// nothing, and its collection, which removes all that it does not know, removes nothing; even where keys are the same.
func testOtherName(t *testing.T) {
	for _, prefix := range []string{"", "other "} {
		d := start(t)
		first := open(t, directory(t), "first", d.as("first"))
		first.do(t, some("")...)
		before := keys(t, d.as("first"))
		if err := prepare("nameless", "").make(t.Context(), d.as("")); kind(err) != "InvalidArgument" {
			t.Errorf("without a name: %v", err)
		}
		second := moved(t, "second", prefix, d.as("second"))
		inherited := map[string]string{"containerd.io/snapshot/one": "1"}
		for _, c := range []call{
			prepare("new", ""), view("new", ""), prepare("new", prefix+"base"), commit("new", prefix+"active"),
			update(prefix+"child", inherited),
		} {
			err := c.make(second.ctx, second.snapshotter)
			if kind(err) != "FailedPrecondition" || !strings.Contains(err.Error(), "make a second store beside it") {
				t.Errorf("%s by another client: %q: %v", c.name, kind(err), err)
			}
		}
		second.collect(t, prefix+"excuse")
		if after := keys(t, d.as("first")); !slices.Equal(before, after) {
			t.Errorf("the other's collection left %q of %q", after, before)
		}
		first.do(t, prepare("new", "child"), commit("newer", "new"), update("newer", inherited), remove("newer"))
		first.collect(t, "excuse")
		before = slices.DeleteFunc(before, func(key string) bool { return strings.HasSuffix(key, "/excuse") })
		if after := keys(t, d.as("first")); !slices.Equal(before, after) {
			t.Errorf("the own collection left %q of %q", after, before)
		}
	}
}

// testSameName shows what would happen otherwise: under the same name, the collection removes what is the first's.
func testSameName(t *testing.T) {
	d := start(t)
	first := open(t, directory(t), client, d.as(client))
	first.do(t, some("")...)
	moved(t, client, "other ", d.as(client)).collect(t, "other excuse")
	if after := keys(t, d.as(client)); len(after) > 0 {
		t.Errorf("the collection of another with the same name left %q", after)
	}
}

// testForgotten has a collection remove exactly those that the database does not know.
func testForgotten(t *testing.T) {
	backend := start(t).as(client)
	db := open(t, directory(t), client, backend)
	db.do(t, some("")...)
	before := slices.DeleteFunc(keys(t, backend), func(key string) bool { return strings.HasSuffix(key, "/excuse") })
	parent := before[slices.IndexFunc(before, func(key string) bool { return strings.HasSuffix(key, "/child") })]
	for _, c := range append(some("default/100/"), prepare("default/101/on a known one", parent), view("none", "")) {
		if err := c.make(t.Context(), backend); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	db.collect(t, "excuse")
	if after := keys(t, backend); !slices.Equal(before, after) {
		t.Errorf("a collection left %q and should have left %q", after, before)
	}
}

// testCancelled gives up calls, many at once, at every moment of theirs. Each key stays free or is taken, and nothing
// waits for the call that nobody waits for; what it left, a collection removes.
func testCancelled(t *testing.T) {
	const atOnce = 50
	backend := start(t).as(client)
	db := open(t, directory(t), client, backend)
	attempt := func(ctx context.Context, s snapshots.Snapshotter, c call, patience time.Duration, expected ...string) string {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		err := c.make(ctx, s)
		if !slices.Contains(expected, kind(err)) {
			t.Errorf("%s in %s: %q: %v", c.name, patience, kind(err), err)
		}
		return kind(err)
	}
	// Until there is time for all.
	for patience, done := time.Millisecond, int32(0); done < atOnce; patience *= 2 {
		var (
			waiting sync.WaitGroup
			ended   atomic.Int32
		)
		for i := range atOnce {
			key := fmt.Sprintf("%s %d", patience, i)
			waiting.Go(func() {
				if attempt(db.ctx, db.snapshotter, prepare(key, ""), patience, "OK", "DeadlineExceeded") == "OK" {
					ended.Add(1)
					attempt(db.ctx, db.snapshotter, remove(key), time.Minute, "OK")
				}
				// The database has a new key for each call; here the same is asked for again.
				attempt(t.Context(), backend, prepare(key, ""), patience, "OK", "DeadlineExceeded")
				attempt(t.Context(), backend, prepare(key, ""), time.Minute, "OK", "AlreadyExists")
				attempt(t.Context(), backend, remove(key), time.Minute, "OK")
			})
		}
		waiting.Wait()
		done = ended.Load()
	}
	for begun := time.Now(); len(keys(t, backend)) > 0; {
		db.do(t, prepare("excuse", ""))
		db.collect(t, "excuse")
		if time.Since(begun) > time.Minute {
			t.Fatalf("collections leave %q", keys(t, backend))
		}
	}
}
