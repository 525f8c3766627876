// Tests a snapshotter's daemon through containerd's own client for proxy plugins. Each case starts the command that is
// given, with --root and --address added, on a store of its own below $TMPDIR, which has to be on btrfs:
//
//	suite [flags of go test] COMMAND...
package main

import (
	"regexp"
	"testing"
)

func main() {
	testing.Main(regexp.MatchString, []testing.InternalTest{
		{Name: "Containerd", F: testContainerd},
		{Name: "Kinds", F: testKinds},
		{Name: "Errors", F: testErrors},
		{Name: "Update", F: testUpdate},
		{Name: "Filters", F: testFilters},
		{Name: "Walk", F: testWalk},
		{Name: "InFlight", F: testInFlight},
		{Name: "OtherName", F: testOtherName},
		{Name: "SameName", F: testSameName},
		{Name: "Forgotten", F: testForgotten},
		{Name: "Cancelled", F: testCancelled},
	}, nil, nil)
}
