package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
)

// plot has the program in plot/ draw the entries into a folder.
func (b *bench) plot(ctx context.Context, dir string, entries []entry) error {
	if dir == "" {
		return nil
	}
	path, err := b.builder.program(ctx, "plot")
	if err != nil {
		return err
	}
	file := filepath.Join(b.builder.dir, "plot.json")
	if err := writeJSON(file, entries); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, path, file, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("plot: %w: %s", err, out)
	}
	return nil
}
