// Package journal remembers what a process changed about the machine, so that whoever comes after its death can change it
// back. An entry is a file with a lock on it that ends with the process: written before the change, removed after the
// change was undone.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const suffix = ".journal"

// patience is for who replays an entry at this moment, and is not the one that it stands for.
const patience = 200 * time.Millisecond

// Entry is a change that this process may have made.
type Entry struct{ file *os.File }

// Write makes an entry: what is the change, for Replay, as JSON has it. The folder is made if it is missing. An entry of
// that name that stands for another living process is an error, and that of a dead one is overwritten: Replay comes first.
func Write(dir, name string, what any) (*Entry, error) {
	text, err := json.Marshal(what)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	f, err := open(filepath.Join(dir, name+suffix), os.O_CREATE)
	for end := time.Now().Add(patience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
		f, err = open(filepath.Join(dir, name+suffix), os.O_CREATE)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(text, 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), f.Close())
	}
	return &Entry{f}, nil
}

// open opens a file and locks it. That somebody else has it is an error that matches unix.EWOULDBLOCK.
func open(path string, flags int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|flags, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return nil, errors.Join(fmt.Errorf("%s is a living process's: %w", path, err), f.Close())
		}
		// It may have been removed between the two calls, by the one who had the lock.
		here, herr := f.Stat()
		there, terr := os.Stat(path)
		if herr == nil && terr == nil && os.SameFile(here, there) {
			return f, nil
		}
		f.Close()
	}
}

// Remove ends an entry whose change was undone.
func (e *Entry) Remove() error {
	return errors.Join(os.Remove(e.file.Name()), e.file.Close())
}

// Replay calls undo with each entry of a dead process, and removes those that it undid. A folder that is not there has
// none; entries that were cut short belong to changes that were not made.
func Replay[T any](dir string, undo func(T) (done bool, err error)) error {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("journal: %w", err)
	}
	var errs []error
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), suffix) {
			continue
		}
		if err := replay(filepath.Join(dir, file.Name()), undo); err != nil {
			errs = append(errs, fmt.Errorf("journal: %s: %w", file.Name(), err))
		}
	}
	return errors.Join(errs...)
}

func replay[T any](path string, undo func(T) (bool, error)) error {
	f, err := open(path, 0)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var what T
	if json.Unmarshal(text, &what) == nil {
		if done, err := undo(what); err != nil || !done {
			return err
		}
	}
	return os.Remove(path)
}
