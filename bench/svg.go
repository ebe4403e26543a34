package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// Colors of the tools in pictures, readable on light and dark ground.
var colors = map[string]string{"strake": "#1a7f5a", "buildkit": "#2f6fd0", "buildah": "#c26a1b"}

func color(tool string) string {
	if c, ok := colors[tool]; ok {
		return c
	}
	return "#888888"
}

type picture struct {
	strings.Builder
	width, height int
}

func newPicture(width, height int) *picture {
	p := &picture{width: width, height: height}
	fmt.Fprintf(p, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#777">`+"\n", width, height, width, height)
	return p
}

func (p *picture) text(x, y float64, anchor, s string) {
	fmt.Fprintf(p, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(s))
}

func (p *picture) line(x1, y1, x2, y2 float64) {
	fmt.Fprintf(p, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#ccc"/>`+"\n", x1, y1, x2, y2)
}

func (p *picture) legend(x, y float64, tools []string) {
	for _, t := range tools {
		fmt.Fprintf(p, `<rect x="%.1f" y="%.1f" width="10" height="10" fill="%s"/>`+"\n", x, y-9, color(t))
		p.text(x+15, y, "start", t)
		x += 90
	}
}

func (p *picture) end() string {
	p.WriteString("</svg>\n")
	return p.String()
}

// logScale maps values to pixels, by powers of ten.
type logScale struct{ low, high, from, to float64 }

func newLogScale(values []float64, from, to float64) logScale {
	low, high := math.Inf(1), 0.0
	for _, v := range values {
		low, high = min(low, v), max(high, v)
	}
	return logScale{math.Floor(math.Log10(low)), max(math.Ceil(math.Log10(high)), math.Floor(math.Log10(low))+1), from, to}
}

func (s logScale) at(v float64) float64 {
	return s.from + (math.Log10(v)-s.low)/(s.high-s.low)*(s.to-s.from)
}

func (s logScale) ticks() []float64 {
	var t []float64
	for e := s.low; e <= s.high; e++ {
		t = append(t, math.Pow(10, e))
	}
	return t
}

// bars draws the times of all cases.
func bars(rows []row, tools []string) string {
	const left, thick, gap = 60, 9, 12
	group := len(tools)*thick + gap
	p := newPicture(720, 50+len(rows)*group+20)
	var values []float64
	for _, r := range rows {
		for _, t := range tools {
			if len(r.samples[t]) > 0 {
				values = append(values, median(r.samples[t]).wall.Seconds())
			}
		}
	}
	if len(values) == 0 {
		return p.end()
	}
	scale := newLogScale(values, left, float64(p.width)-60)
	for _, t := range scale.ticks() {
		p.line(scale.at(t), 40, scale.at(t), float64(p.height)-10)
		p.text(scale.at(t), 34, "middle", fmt.Sprintf("%g s", t))
	}
	p.legend(left, 14, tools)
	for i, r := range rows {
		y := float64(46 + i*group)
		p.text(left-6, y+float64(len(tools)*thick)/2+4, "end", r.name)
		for j, t := range tools {
			if len(r.samples[t]) == 0 {
				continue
			}
			v := median(r.samples[t]).wall.Seconds()
			fmt.Fprintf(p, `<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"><title>%s %s: %.3f s</title></rect>`+"\n",
				left, y+float64(j*thick), max(scale.at(v)-left, 1), thick-1, color(t), r.name, t, v)
		}
	}
	return p.end()
}

// svg draws a curve for each tool, both axes by powers of ten.
func (g graph) svg() string {
	const left, bottom = 70, 50
	p := newPicture(560, 340)
	var xs, ys []float64
	for _, t := range g.tools {
		for _, pt := range g.points[t] {
			xs, ys = append(xs, float64(pt.size)), append(ys, pt.seconds)
		}
	}
	if len(xs) == 0 {
		return p.end()
	}
	x := newLogScale(xs, left, float64(p.width)-20)
	y := newLogScale(ys, float64(p.height)-bottom, 40)
	for _, t := range y.ticks() {
		p.line(left, y.at(t), float64(p.width)-20, y.at(t))
		p.text(left-6, y.at(t)+4, "end", fmt.Sprintf("%g s", t))
	}
	for _, t := range x.ticks() {
		p.line(x.at(t), 40, x.at(t), float64(p.height)-bottom)
		p.text(x.at(t), float64(p.height)-bottom+18, "middle", fmt.Sprintf("%.0f", t))
	}
	p.text(float64(p.width)/2, float64(p.height)-10, "middle", g.work+", "+g.unit)
	p.legend(left, 20, g.tools)
	for _, t := range g.tools {
		var path []string
		for _, pt := range g.points[t] {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x.at(float64(pt.size)), y.at(pt.seconds)))
			fmt.Fprintf(p, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"><title>%d %s: %.3f s</title></circle>`+"\n", x.at(float64(pt.size)), y.at(pt.seconds), color(t), pt.size, g.unit, pt.seconds)
		}
		fmt.Fprintf(p, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), color(t))
	}
	return p.end()
}
