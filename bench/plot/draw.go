package main

import (
	"fmt"
	"image/color"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

var (
	blue  = color.RGBA{R: 0x3b, G: 0x6e, B: 0xa8, A: 0xff}
	black = color.RGBA{A: 0xff}
	red   = color.RGBA{R: 0xb0, G: 0x30, B: 0x30, A: 0xff}
)

// drawBars draws a bar for each ratio from the top down, with a line from the lowest round to the highest, and a red mark where
// its target is.
func drawBars(file, name string, list []entry) error {
	p := newPlot(titles[name], list[0])
	p.X.Label.Text = "ratio: median of the rounds, lowest to highest; red: target"
	n := len(list)
	values, labels := make(plotter.Values, n), make([]string, n)
	for i, e := range list {
		values[n-1-i] = e.Ratio
		labels[n-1-i] = strings.TrimSuffix(e.Work, " rate") + " / " + e.Against
	}
	bars, err := plotter.NewBarChart(values, vg.Points(9))
	if err != nil {
		return err
	}
	bars.Horizontal, bars.Color, bars.LineStyle.Width = true, blue, 0
	p.Add(plotter.NewGrid(), bars)
	for i, e := range list {
		y := float64(n - 1 - i)
		if err := addLine(p, black, 1, plotter.XYs{{X: e.Low, Y: y}, {X: e.High, Y: y}}); err != nil {
			return err
		}
		if e.Target > 0 {
			if err := addLine(p, red, 2, plotter.XYs{{X: e.Target, Y: y - .4}, {X: e.Target, Y: y + .4}}); err != nil {
				return err
			}
		}
	}
	if err := addLine(p, black, .5, plotter.XYs{{X: 1, Y: -.7}, {X: 1, Y: float64(n) - .3}}); err != nil {
		return err
	}
	p.NominalY(labels...)
	p.X.Min = 0
	return p.Save(24*vg.Centimeter, vg.Length(3+.55*float64(n))*vg.Centimeter, file)
}

var titles = map[string]string{
	"more-is-better": "xdpd / others: more is better",
	"less-is-better": "xdpd / others: less is better",
	"cpu":            "xdpd / others, CPU time of the server for each request: less is better",
}

// drawCurve draws how a rate changes with a number of which there are more and more.
func drawCurve(file, name string, points []point) error {
	p := newPlot(name+": how the rate changes", points[0].entry)
	p.X.Label.Text = strings.TrimPrefix(name, "grow-")
	p.Y.Label.Text = points[0].Unit
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
	var line plotter.XYs
	for _, e := range points {
		line = append(line, plotter.XY{X: e.n, Y: e.Value})
		if e.Ratio > 0 { // the spread of the ratio, around the value
			spread := plotter.XYs{{X: e.n, Y: e.Value * e.Low / e.Ratio}, {X: e.n, Y: e.Value * e.High / e.Ratio}}
			if err := addLine(p, black, 1, spread); err != nil {
				return err
			}
		}
	}
	if err := addLine(p, blue, 2, line); err != nil {
		return err
	}
	dots, err := plotter.NewScatter(line)
	if err != nil {
		return err
	}
	dots.GlyphStyle = draw.GlyphStyle{Color: blue, Radius: vg.Points(3), Shape: draw.CircleGlyph{}}
	p.Add(plotter.NewGrid(), dots)
	p.Y.Min = 0
	return p.Save(16*vg.Centimeter, 10*vg.Centimeter, file)
}

func newPlot(title string, e entry) *plot.Plot {
	p := plot.New()
	s := e.Setup
	p.Title.Text = fmt.Sprintf("%s\n%s, Linux %s, %s, %s, commit %s", title, s.Machine, s.Kernel, s.Device, s.Mode, s.Commit)
	p.Title.TextStyle.Font.Size = vg.Points(10)
	return p
}

func addLine(p *plot.Plot, c color.Color, width vg.Length, points plotter.XYs) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color, l.Width = c, vg.Points(float64(width))
	p.Add(l)
	return nil
}
