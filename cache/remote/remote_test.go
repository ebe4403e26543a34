package remote

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"

	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/layers/blob"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		flag string
		to   bool
		want Spec
		err  string
	}{
		{flag: "example.com/app:cache", want: Spec{"registry", map[string]string{"ref": "example.com/app:cache"}}},
		{flag: "type=registry,ref=app", want: Spec{"registry", map[string]string{"ref": "app"}}},
		{flag: `type=local,"src=a,b"`, want: Spec{"local", map[string]string{"src": "a,b"}}},
		{flag: "type=local,dest=d,mode=max,ignore-error=true", to: true, want: Spec{"local", map[string]string{"dest": "d", "mode": "max", "ignore-error": "true"}}},
		{flag: "type=inline", to: true, want: Spec{"inline", map[string]string{}}},
		{flag: "type=inline", err: "an inline cache is read from its image"},
		{flag: "type=gha,scope=x", want: Spec{"gha", map[string]string{"scope": "x"}}},
		{flag: "type=s3", err: "bucket= is missing"},
		{flag: "type=local,src=d,mode=max", err: "mode has no meaning"},
		{flag: "ref=x", err: `type "" is not one of`},
		{flag: "type=registry,ref", err: "not of the form key=value"},
		{flag: "", err: "nothing given"},
	} {
		parse := ParseImport
		if c.to {
			parse = ParseExport
		}
		got, err := parse(c.flag)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: got error %v, want %q", c.flag, err, c.err)
			}
			continue
		}
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%q: %v\n%s", c.flag, err, diff)
		}
	}
}

// FuzzRemoteRecord: no record of a stranger makes a layer that could be mistaken,
// and what was read is read the same when it is written again.
func FuzzRemoteRecord(f *testing.F) {
	f.Add(`{"key":"k","outputs":[{"tree":"t","layers":[{"diffID":"sha256:0000000000000000000000000000000000000000000000000000000000000000","blob":{"digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1}}]}]}`)
	f.Add(`{"key":"k","outputs":[{"tree":"t","layers":[{"diffID":"../../x"}]}]}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, data string) {
		r, err := DecodeRecord([]byte(digest.FromString(data).Encoded()+"\n"+data), "k")
		if err != nil {
			return
		}
		if r.Key != "k" {
			t.Errorf("key %q", r.Key)
		}
		object, err := encode(r)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again, err := DecodeRecord(object, "k")
		if diff := cmp.Diff(r, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("read again: %v (-first +second):\n%s", err, diff)
		}
		for _, out := range r.Outputs {
			for _, l := range out.Layers {
				if len(l.DiffID.Encoded()) != 64 || len(l.Blob.Digest.Encoded()) != 64 || l.Blob.Size < 0 || len(l.Blob.URLs) > 0 {
					t.Errorf("layer %+v", l)
				}
			}
		}
	})
}

// silent is a cache that never answers, or always the same.
type silent struct {
	err  error
	data []byte
	asks int
}

func (s *silent) Get(ctx context.Context, _ string) ([]byte, error) {
	s.asks++
	if s.err != nil || s.data != nil {
		return s.data, s.err
	}
	<-ctx.Done()
	return nil, context.Cause(ctx)
}
func (s *silent) Has(ctx context.Context, name string) (bool, error) {
	_, err := s.Get(ctx, name)
	return false, err
}
func (s *silent) Put(ctx context.Context, name string, _ []byte, _ []blob.Ref, _ bool) error {
	_, err := s.Get(ctx, name)
	return err
}
func (s *silent) Origin() string { return "file:///nowhere" }
func (s *silent) String() string { return "type=silent" }

// A cache that fails, or does not answer in time, is asked once and warned of
// once.
func TestDegrade(t *testing.T) {
	t.Parallel()
	for _, s := range []*silent{{}, {err: errors.New("out of order")}} {
		var warnings []string
		im := NewImporter(s, nil, func(err error) { warnings = append(warnings, err.Error()) })
		im.Patience = 20 * time.Millisecond
		for range 3 {
			if _, ok := im.Record(t.Context(), cache.Key("k")); ok {
				t.Error("there is a record")
			}
			if _, ok := im.Memo(t.Context(), "tree", "selector"); ok {
				t.Error("there is a memo")
			}
		}
		if s.asks != 1 || len(warnings) != 1 || !strings.Contains(warnings[0], "cache type=silent is not used: ") {
			t.Errorf("asked %d times; warnings %q", s.asks, warnings)
		}
	}
	// Who cancels the build hears of no cache.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	im := NewImporter(&silent{}, nil, func(err error) { t.Error(err) })
	im.Record(ctx, "k")
}

// That a record is missing is asked once, and so is what is there; that one was
// damaged is remembered.
func TestRemembers(t *testing.T) {
	t.Parallel()
	s := &silent{err: ErrNotFound}
	im := NewImporter(s, nil, func(err error) { t.Error(err) })
	for range 3 {
		im.Record(t.Context(), "k")
	}
	if s.asks != 1 || im.Damaged("k") {
		t.Errorf("asked %d times, damaged %v", s.asks, im.Damaged("k"))
	}
	im.Distrust("k")
	if !im.Damaged("k") {
		t.Error("Distrust is forgotten")
	}

	memo, err := encode(Memo{"tree", "selector", digest.FromString("content")})
	if err != nil {
		t.Fatal(err)
	}
	s = &silent{data: memo}
	im = NewImporter(s, nil, func(err error) { t.Error(err) })
	for range 3 {
		if d, ok := im.Memo(t.Context(), "tree", "selector"); !ok || d != digest.FromString("content") {
			t.Errorf("the memo is %q, %v", d, ok)
		}
	}
	if s.asks != 1 {
		t.Errorf("asked %d times for what is there", s.asks)
	}
}

// Any damage to an object is noticed.
func TestDamagedObject(t *testing.T) {
	t.Parallel()
	good, err := encode(Record{Key: "k", Outputs: []Output{{Tree: "t", Layers: []Layer{}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeRecord(good, "k"); err != nil {
		t.Error(err)
	}
	if _, err := DecodeRecord(good, "other"); err == nil {
		t.Error("the record of another key is taken")
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, err := DecodeRecord(bad, "k"); err == nil {
			t.Errorf("damage at %d is not noticed: %s", i, bad)
		}
		if _, err := DecodeRecord(good[:i], "k"); err == nil {
			t.Errorf("the end at %d is not noticed", i)
		}
	}
}
