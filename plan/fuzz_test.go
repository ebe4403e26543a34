package plan

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// opInput makes an op of a fuzzer's bytes.
type opInput []byte

func (in *opInput) next(n int) int {
	if len(*in) == 0 {
		return 0
	}
	b := (*in)[0]
	*in = (*in)[1:]
	return int(b) % n
}

func (in *opInput) op() Op {
	op := []Op{&Image{}, &Local{}, &Git{}, &HTTP{}, &Exec{}, &File{}, &Exec{}, &File{}}[in.next(8)]
	in.fill(reflect.ValueOf(op).Elem())
	return op
}

func (in *opInput) fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		b := make([]byte, in.next(4))
		for i := range b {
			b[i] = byte(in.next(256))
		}
		v.SetString(string(b))
	case reflect.Bool:
		v.SetBool(in.next(2) == 1)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(in.next(256)) - 2)
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(in.next(256)))
	case reflect.Pointer:
		if in.next(2) == 1 {
			v.Set(reflect.New(v.Type().Elem()))
			in.fill(v.Elem())
		}
	case reflect.Slice:
		n := in.next(3)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			in.fill(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			in.fill(v.Field(i))
		}
	case reflect.Interface:
		a := []Action{&Copy{}, &Mkdir{}, &Mkfile{}, &Symlink{}, &Remove{}}[in.next(5)]
		in.fill(reflect.ValueOf(a).Elem())
		v.Set(reflect.ValueOf(a))
	}
}

// leaves calls fn for each string of an op, and for each list.
func leaves(v reflect.Value, fn func(reflect.Value)) {
	switch v.Kind() {
	case reflect.String:
		fn(v)
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			leaves(v.Elem(), fn)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			fn(v)
			for i := range v.Len() {
				leaves(v.Index(i), fn)
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			leaves(v.Field(i), fn)
		}
	}
}

// inKey clears what does not enter a key.
func inKey(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			inKey(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			inKey(v.Index(i))
		}
		if v.Len() == 0 {
			v.SetZero()
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if notInKey[v.Type().Name()+"."+v.Type().Field(i).Name] {
				v.Field(i).SetZero()
			} else {
				inKey(v.Field(i))
			}
		}
	}
}

// FuzzCanonical: two ops have the same bytes if what enters a key is the same,
// and only then. The second op is the first one with text moved from one string
// to another, or an element from one list to another: what an encoding without
// lengths would not tell apart.
func FuzzCanonical(f *testing.F) {
	f.Add([]byte("\x04\x02\x01a\x01b\x01\x02AB\x01/"), uint16(1), uint16(2), byte(1))
	f.Add([]byte("\x05\x02\x00\x01\x01a\x01b\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01\x01c"), uint16(3), uint16(4), byte(0))
	f.Add([]byte("\x06\x01\x01a\x01\x01b\x00\x00\x00\x00\x00\x02\x01x\x01y\x01z\x01w"), uint16(0), uint16(5), byte(1))
	f.Add([]byte("\x02\x01a\x01b\x01c\x01d\x01\x01\x01e\x01\x01f"), uint16(0), uint16(1), byte(1))
	f.Fuzz(func(t *testing.T, data []byte, from, to uint16, n byte) {
		parse := func() Op { in := opInput(data); return in.op() }
		a, b := parse(), parse()
		if !bytes.Equal(Canonical(a), Canonical(b)) {
			t.Fatal("the same op has two encodings")
		}
		var all []reflect.Value
		leaves(reflect.ValueOf(b), func(v reflect.Value) { all = append(all, v) })
		if len(all) > 0 {
			x, y := all[int(from)%len(all)], all[int(to)%len(all)]
			switch {
			case x.Kind() != y.Kind():
			case x.Kind() == reflect.String:
				cut := x.Len() - min(int(n), x.Len())
				moved := x.String()[cut:]
				x.SetString(x.String()[:cut])
				y.SetString(moved + y.String())
			case x.Type() == y.Type() && x.Len() > 0:
				moved := x.Index(x.Len() - 1)
				rest := x.Slice(0, x.Len()-1)
				y.Set(reflect.Append(y.Slice3(0, y.Len(), y.Len()), moved))
				x.Set(rest)
			}
		}
		same := bytes.Equal(Canonical(a), Canonical(b))
		for _, op := range []Op{a, b} {
			_ = (&Build{Targets: []Target{{Step: &Step{Op: op, Name: "x"}}}}).Text()
			inKey(reflect.ValueOf(op))
		}
		if d := cmp.Diff(a, b); same != (d == "") {
			t.Errorf("same bytes: %v, but the ops are (-first +second):\n%s", same, d)
		}
	})
}
