package image

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/leak"
	"github.com/strake-build/strake/layers/snapshot"
)

// LeakError tells that the value of a secret is in what was to be packed.
type LeakError struct {
	Secret string // its name
	Form   string // how it is there, as "in base64"
	Layer  layers.ID
	// Path is the file in the layer, and Line the line where the value
	// begins; 0 if it is in the file's name or attributes.
	Path string
	Line int
	// Part is where it is if it is in no layer, as "image configuration,
	// history[2].created_by".
	Part string
	// In is what it would have been published in; empty: the image.
	In string
}

func (e *LeakError) Error() string {
	at := e.Part
	if at == "" {
		at = "/" + e.Path
		if e.Line > 0 {
			at += ", line " + strconv.Itoa(e.Line)
		} else {
			at += ", in its name or attributes"
		}
	}
	return fmt.Sprintf("the secret %q is in %s %s: %s", e.Secret, cmp.Or(e.In, "the image"), e.Form, at)
}

// UnsearchedError tells that a step that made the layer was given a secret that
// this build doesn't have, so that nobody can tell whether it is in there.
type UnsearchedError struct{ Layer layers.ID }

func (e *UnsearchedError) Error() string {
	return "a step was given a secret that its result was never searched for, and this build was not given that secret"
}

// unsearched returns the marks of values that a layer has not been searched for.
// Layers that came as blobs are others' and are not searched.
func unsearched(l snapshot.Layer, g *leak.Guard) ([]string, error) {
	if g == nil || pulled(l) {
		return nil, nil
	}
	marks := g.Marks()
	for _, m := range l.Given {
		if !slices.Contains(l.Searched, m) && !slices.Contains(marks, m) {
			return nil, &UnsearchedError{l.ID}
		}
	}
	return slices.DeleteFunc(marks, func(m string) bool { return slices.Contains(l.Searched, m) }), nil
}

// search looks for values in a layer that is packed already.
func (p *Packer) search(ctx context.Context, l snapshot.Layer, o PackOptions, src snapshot.Sources, marks []string) error {
	s := o.Guard.Search()
	write := func() error { return p.writeTar(ctx, l.ID, o, src, s) }
	if k := known(l, o.times()); !l.Dir && len(k.Blobs) > 0 && p.have(k.Blobs[0]) {
		write = func() error { return p.writeBlob(ctx, l, k.Blobs[0], src, s) }
	}
	if err := write(); err != nil {
		return err
	}
	if err := p.judge(ctx, l.ID, o, src, s); err != nil {
		return err
	}
	return p.Layers.Update(l.ID, func(l *snapshot.Layer) { l.AddSearched(marks) })
}

// judge returns a LeakError if s has found something in the stream of the layer,
// which is then as good as gone.
func (p *Packer) judge(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources, s *leak.Search) error {
	m, ok := s.Found()
	if !ok {
		return nil
	}
	e := &LeakError{Secret: m.Secret, Form: m.Form, Layer: id}
	if err := p.locate(ctx, id, o, src, e); err != nil {
		return errors.Join(e, err)
	}
	// Else the next build would find the layer, and might not have the secret
	// that tells what is wrong with it.
	return errors.Join(e, p.Layers.Spoil(id))
}

// locate finds out which file has the value.
func (p *Packer) locate(ctx context.Context, id layers.ID, o PackOptions, src snapshot.Sources, e *LeakError) error {
	for entry, err := range p.Layers.Entries(ctx, id, src) {
		if err != nil {
			return err
		}
		names := entry.Path + "\n" + entry.Link
		for k, v := range entry.Xattrs {
			names += "\n" + k + "\n" + v
		}
		if m, ok := o.Guard.Find([]byte(names)); ok {
			e.Secret, e.Form, e.Path = m.Secret, m.Form, entry.Path
			return nil
		}
		if entry.Type != layers.Regular || entry.Size == 0 {
			continue
		}
		open := func() (io.ReadCloser, error) { return p.Layers.OpenEntry(ctx, id, entry, src) }
		s := o.Guard.Search()
		if err := copyFrom(s, open, -1); err != nil {
			return err
		}
		if m, ok := s.Found(); ok {
			var lines lineCounter
			err := copyFrom(&lines, open, m.Offset)
			e.Secret, e.Form, e.Path, e.Line = m.Secret, m.Form, entry.Path, int(lines)+1
			return err
		}
	}
	return nil
}

// copyFrom copies the first n bytes to w, all if n is negative.
func copyFrom(w io.Writer, open func() (io.ReadCloser, error), n int64) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	var from io.Reader = r
	if n >= 0 {
		from = io.LimitReader(r, n)
	}
	_, err = io.Copy(w, from)
	return err
}

type lineCounter int

func (c *lineCounter) Write(p []byte) (int, error) {
	*c += lineCounter(bytes.Count(p, []byte{'\n'}))
	return len(p), nil
}

// CheckJSON returns a LeakError if a document has a value that g knows; part
// names the document.
func CheckJSON(g *leak.Guard, part string, raw []byte) error {
	m, ok := g.Find(raw)
	if !ok {
		return nil
	}
	var doc any
	if json.Unmarshal(raw, &doc) == nil {
		if at := findIn(g, doc, ""); at != "" {
			part += ", " + at
		}
	}
	return &LeakError{Secret: m.Secret, Form: m.Form, Part: part}
}

// findIn is the way to the first string in a JSON value that has something to
// hide, as "config.Env[2]".
func findIn(g *leak.Guard, v any, at string) string {
	has := func(s string) bool { _, ok := g.Find([]byte(s)); return ok }
	switch v := v.(type) {
	case string:
		if has(v) {
			return at
		}
	case []any:
		for i, e := range v {
			if found := findIn(g, e, fmt.Sprintf("%s[%d]", at, i)); found != "" {
				return found
			}
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			next := k
			if at != "" {
				next = at + "." + k
			}
			if has(k) {
				return "a key of " + at
			}
			if found := findIn(g, v[k], next); found != "" {
				return found
			}
		}
	}
	return ""
}
