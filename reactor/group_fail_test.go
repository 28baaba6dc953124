package reactor

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestGroupFailsOnOneLoop: a reactor that fails ends the group as well when others on its loop go on.
func TestGroupFailsOnOneLoop(t *testing.T) {
	for _, loops := range []int{1, 2} {
		_, reactors, _ := newRigs(t, 3, options{realTime: true})
		g, err := NewGroup(reactors, GroupConfig{Loops: loops})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- g.Run(t.Context()) }()
		broken := errors.New("gone")
		reactors[2].Fail(broken)
		if err := await(t, "the end of Run", done); !errors.Is(err, broken) {
			t.Errorf("Run: %v", err)
		}
	}
}

// TestGroupBadCPU: a loop that cannot be pinned ends the group.
func TestGroupBadCPU(t *testing.T) {
	_, reactors, _ := newRigs(t, 2, options{realTime: true})
	g, err := NewGroup(reactors, GroupConfig{CPUs: []int{0, 1023}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	if err := await(t, "the end of Run", done); err == nil || !strings.Contains(err.Error(), "CPU 1023") {
		t.Errorf("Run: %v", err)
	}
}
