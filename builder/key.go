package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/strake-build/strake/builder/file"
	"github.com/strake-build/strake/cache"
	"github.com/strake-build/strake/plan"
)

// How a step is identified.
//
//	key(step) = H(schema version, canonical op, platform of an Exec, identity of each input, devices of an Exec)
//
// An input counts as a whole, by its own key, where the step can write through
// to it or its result contains it: the root of an Exec, the base of a File,
// every input of a Merge or Diff. Of other inputs only the paths that are used
// count, by their content: a COPY --from of a stage that was built anew with
// the same outcome is not built anew itself (early cut-off).
//
// Content digests of trees are remembered by tree (memos), so that a graph whose
// results are all stored is keyed without unpacking anything. A result that a
// remote cache has keeps the identity it had where it was made, and so its memos;
// to know the identity is enough to key what copies from it. Behind a step that a
// cache of BuildKit's knows, an input may count by definition (see byDefinition).

// keySchema changes whenever the meaning of keys or records does.
const keySchema = "strake/1"

// key returns the key of a vertex.
func (bd *build) key(ctx context.Context, v *vertex) (cache.Key, error) {
	return v.key.get(func() (cache.Key, error) {
		switch op := v.step.Op.(type) {
		case *plan.Image:
			bt, err := bd.baseTree(ctx, v)
			if err != nil {
				return "", err
			}
			ids := make([]string, len(bt.diffIDs))
			for i, d := range bt.diffIDs {
				ids[i] = d.String()
			}
			return hashKey(append([]string{"image"}, ids...)...), nil
		case *plan.Local:
			in, err := bd.fileInput(ctx, v, -1)
			if err != nil {
				return "", err
			}
			all, err := file.SelectPath(ctx, in, ".")
			if err != nil {
				return "", bd.stepError(v, err)
			}
			return hashKey("local", all.Digest.String()), nil
		case *plan.HTTP, *plan.Git:
			id, err := bd.remote(ctx, v)
			if err != nil {
				return "", err
			}
			return hashKey(string(plan.Canonical(withoutChecksum(op))), id), nil
		}
		ids, err := bd.identities(ctx, v)
		if err != nil {
			return "", err
		}
		parts := append([]string{string(plan.Canonical(v.step.Op)), platformKey(v.step)}, ids...)
		if op, ok := v.step.Op.(*plan.Exec); ok && len(op.Devices) > 0 {
			d, err := bd.devices(op)
			if err != nil {
				return "", bd.stepError(v, err)
			}
			parts = append(parts, "devices:"+d.String())
		}
		return hashKey(parts...), nil
	})
}

// devices is the digest of what the devices of a step are on this machine.
func (bd *build) devices(op *plan.Exec) (digest.Digest, error) {
	set, err := bd.b.Devices.Find(op.Devices)
	if err != nil {
		return "", err
	}
	return set.Digest()
}

// withoutChecksum is an HTTP or Git op without what its result was checked
// against when it was resolved: the result is the same.
func withoutChecksum(op plan.Op) plan.Op {
	switch op := op.(type) {
	case *plan.HTTP:
		plain := *op
		plain.Checksum = ""
		return &plain
	case *plan.Git:
		plain := *op
		plain.Checksum = ""
		return &plain
	}
	return op
}

func platformKey(s *plan.Step) string {
	if _, ok := s.Op.(*plan.Exec); !ok {
		return ""
	}
	p := s.Platform
	return strings.Join([]string{p.OS, p.Architecture, p.Variant, p.OSVersion}, "/")
}

// hashKey hashes parts unambiguously.
func hashKey(parts ...string) cache.Key {
	h := sha256.New()
	for _, p := range append([]string{keySchema}, parts...) {
		h.Write(strconv.AppendInt(nil, int64(len(p)), 10))
		h.Write([]byte{':'})
		h.Write([]byte(p))
	}
	return cache.Key(hex.EncodeToString(h.Sum(nil)))
}

// identities returns the identities of a vertex's inputs, found in parallel:
// to know one, a stage may have to be built.
func (bd *build) identities(ctx context.Context, v *vertex) ([]string, error) {
	return v.ids.get(func() ([]string, error) {
		ids := make([]string, len(v.inputs))
		if len(ids) == 1 {
			id, err := bd.identity(ctx, v, 0)
			ids[0] = id
			return ids, err
		}
		g, gctx := errgroup.WithContext(ctx)
		for i := range v.inputs {
			g.Go(func() (err error) {
				ids[i], err = bd.identity(gctx, v, i)
				return err
			})
		}
		return ids, g.Wait()
	})
}

// why says what went into the key of a vertex.
func (bd *build) why(ctx context.Context, v *vertex) cache.Why {
	w := cache.Why{Name: v.step.Name, Op: plan.Redact(string(plan.Canonical(v.step.Op))), Platform: platformKey(v.step)}
	w.Inputs, _ = bd.identities(ctx, v) // known, or there would be no key
	if op, ok := v.step.Op.(*plan.Exec); ok {
		w.Args = op.BuildArgs
	}
	return w
}

// wholeInput reports whether input i of an op counts by its key.
func wholeInput(op plan.Op, i int) bool {
	switch op := op.(type) {
	case *plan.File:
		return i == 0
	case *plan.Exec:
		if i == 0 {
			return true
		}
		for _, m := range op.Mounts {
			if m.Input == i && m.Output > 0 {
				return true
			}
		}
		return false
	}
	return true
}

func (bd *build) identity(ctx context.Context, v *vertex, i int) (string, error) {
	in := v.inputs[i]
	if in == nil {
		return "scratch", nil
	}
	if wholeInput(v.step.Op, i) {
		k, err := bd.key(ctx, in)
		return fmt.Sprintf("key:%s:%d", k, v.step.Inputs[i].Output), err
	}
	d, err := bd.contentDigest(ctx, v, i)
	return "content:" + d.String(), err
}

// contentDigest is the digest of what v uses of its input i.
func (bd *build) contentDigest(ctx context.Context, v *vertex, i int) (digest.Digest, error) {
	in := v.inputs[i]
	if _, ok := in.step.Op.(*plan.Local); ok {
		return bd.digestNow(ctx, v, i)
	}
	selector := string(hashKey(string(plan.Canonical(v.step.Op)), strconv.Itoa(i)))
	if id, ok := bd.knownTree(ctx, in, v.step.Inputs[i].Output); ok {
		if d, ok := bd.memo(ctx, id, selector); ok {
			bd.mu.Lock()
			v.assumed[i] = assumption{id, d}
			bd.mu.Unlock()
			return d, nil
		}
	}
	if d, ok := bd.byDefinition(ctx, v, i); ok {
		return d, nil
	}
	tree, err := bd.inputTree(ctx, v, i)
	if err != nil {
		return "", err
	}
	id := bd.treeID(in, tree, v.step.Inputs[i].Output)
	if d, ok := bd.memo(ctx, id, selector); ok {
		return d, nil
	}
	d, err := bd.digestNow(ctx, v, i)
	if err != nil {
		return "", err
	}
	return d, bd.putMemo(id, selector, d)
}

// digestNow is contentDigest of what is there.
func (bd *build) digestNow(ctx context.Context, v *vertex, i int) (digest.Digest, error) {
	fin, err := bd.fileInput(ctx, v, i)
	if err != nil {
		return "", err
	}
	d, err := bd.selection(ctx, v, i, fin)
	return d, bd.stepError(v, err)
}

// selected is what op uses of input i, and the digest of it.
func selected(ctx context.Context, op plan.Op, i int, in file.Input) (digest.Digest, []file.Selection, error) {
	switch op := op.(type) {
	case *plan.File:
		s, err := file.Select(ctx, op, i, in)
		return s.Digest, []file.Selection{s}, err
	case *plan.Exec:
		var parts []string
		var mounted []file.Selection
		for _, m := range op.Mounts {
			if m.Input != i {
				continue
			}
			s, err := file.SelectPath(ctx, in, m.Source)
			if err != nil {
				return "", nil, fmt.Errorf("mount %s: %w", m.Target, err)
			}
			parts = append(parts, s.Digest.String())
			mounted = append(mounted, s)
		}
		return digest.NewDigestFromEncoded(digest.SHA256, string(hashKey(parts...))), mounted, nil
	}
	return "", nil, fmt.Errorf("%T selects no paths", op)
}
