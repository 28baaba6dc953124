// Command plot draws what the bench wrote: ratios as bars with their spread, and how cost grows as curves. It has a module of
// its own, so that nobody who uses the engine downloads a plotting library.
//
//	plot RESULT.json FOLDER
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// entry is what the drawings need of a row of the result; the rest of it is in bench/stat.go.
type entry struct {
	Work, Against, Better, Unit string

	Ratio, Low, High, Target, Value float64

	Rounds int
	Setup  struct{ Machine, Kernel, Device, Mode, Commit string }
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return errors.New("plot RESULT.json FOLDER")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	var all []entry
	if err := json.Unmarshal(text, &all); err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := os.MkdirAll(args[1], 0o755); err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(e entry) bool { return e.Rounds == 0 })
	bars, curves := split(all)
	for name, list := range bars {
		if err := drawBars(filepath.Join(args[1], name+".svg"), name, list); err != nil {
			return err
		}
	}
	for name, points := range curves {
		if err := drawCurve(filepath.Join(args[1], name+".svg"), name, points); err != nil {
			return err
		}
	}
	return nil
}

// point is a place on a curve: what there are so many of, and what came of it.
type point struct {
	n float64
	entry
}

// split sorts what is drawn together: ratios of a rate, which want to be high, those of a time, which want to be low, those of
// CPU time, and each curve. The work of a point is "grow-NAME N ...".
func split(all []entry) (bars map[string][]entry, curves map[string][]point) {
	bars, curves = make(map[string][]entry), make(map[string][]point)
	for _, e := range all {
		f := strings.Fields(e.Work)
		quantity := f[len(f)-1]
		switch {
		case strings.HasPrefix(f[0], "grow-") && quantity == "cpu":
		case strings.HasPrefix(f[0], "grow-"):
			if n, err := strconv.ParseFloat(f[1], 64); err == nil {
				curves[f[0]] = append(curves[f[0]], point{n, e})
			}
		case quantity == "cpu":
			bars["cpu"] = append(bars["cpu"], e)
		case e.Better == "lower":
			bars["less-is-better"] = append(bars["less-is-better"], e)
		default:
			bars["more-is-better"] = append(bars["more-is-better"], e)
		}
	}
	for _, points := range curves {
		slices.SortFunc(points, func(a, b point) int { return int(a.n - b.n) })
	}
	return bars, curves
}
