package journal

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

type change struct{ What string }

// replayAll gives what Replay calls undo with.
func replayAll(t *testing.T, dir string, done bool, fail error) (undone []string, err error) {
	t.Helper()
	err = Replay(dir, func(c change) (bool, error) {
		undone = append(undone, c.What)
		return done, fail
	})
	return undone, err
}

func write(t *testing.T, dir, name, what string) *Entry {
	t.Helper()
	e, err := Write(dir, name, change{what})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestReplay(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	if undone, err := replayAll(t, dir, true, nil); err != nil || undone != nil {
		t.Errorf("a folder that is not there: %v, %v", undone, err)
	}
	dead, alive := write(t, dir, "dead", "a change of a dead process"), write(t, dir, "alive", "b")
	if undone, err := replayAll(t, dir, true, nil); err != nil || undone != nil {
		t.Errorf("of living processes: %v, %v", undone, err)
	}
	if _, err := Write(dir, "alive", change{"c"}); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("an entry of a living process is written over: %v", err)
	}
	dead.file.Close() // as the end of a process does
	want := []string{"a change of a dead process"}
	failed := errors.New("failed")
	if undone, err := replayAll(t, dir, true, failed); !errors.Is(err, failed) || !slices.Equal(undone, want) {
		t.Errorf("undo fails: %v, %v", undone, err)
	}
	if undone, err := replayAll(t, dir, false, nil); err != nil || !slices.Equal(undone, want) {
		t.Errorf("undo is not done: %v, %v", undone, err)
	}
	if undone, err := replayAll(t, dir, true, nil); err != nil || !slices.Equal(undone, want) {
		t.Errorf("undo is done: %v, %v", undone, err)
	}
	if undone, err := replayAll(t, dir, true, nil); err != nil || undone != nil {
		t.Errorf("what was undone: %v, %v", undone, err)
	}
	if err := alive.Remove(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestCutShort: an entry that was not written to its end stands for nothing; a shorter one leaves nothing of a longer.
func TestCutShort(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "x", "something that is long").file.Close()
	e := write(t, dir, "x", "short")
	if err := e.file.Truncate(5); err != nil {
		t.Fatal(err)
	}
	e.file.Close()
	if undone, err := replayAll(t, dir, true, nil); err != nil || undone != nil {
		t.Errorf("%v, %v", undone, err)
	}
	write(t, dir, "x", "something that is long").file.Close()
	write(t, dir, "x", "short").file.Close()
	if undone, err := replayAll(t, dir, true, nil); err != nil || !slices.Equal(undone, []string{"short"}) {
		t.Errorf("%v, %v", undone, err)
	}
}

// TestReplayMeanwhile: who looks for entries of the dead keeps nobody from making one, though it holds files for a moment.
func TestReplayMeanwhile(t *testing.T) {
	dir := t.TempDir()
	stop := make(chan struct{})
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if undone, err := replayAll(t, dir, true, nil); err != nil || undone != nil {
				t.Errorf("%v, %v", undone, err)
				return
			}
		}
	})
	for range 300 {
		if err := write(t, dir, "x", "a change").Remove(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	looking.Wait()
}
