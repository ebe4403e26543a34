package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func blobOf(name string) ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(name), Size: 10,
		Annotations: map[string]string{Uncompressed: digest.FromString("diff " + name).String()},
	}
}

// stepOn is the key of a step on a base image of one layer, "base".
func stepOn(name string) *Key {
	base := &Key{digest: digest.FromString("image"), bottom: []digest.Digest{digest.FromString("diff base")}, count: 1}
	return &Key{digest: digest.FromString(name), bottom: base.bottom, count: 2, deps: []dep{{key: base, selector: "sel"}}}
}

// A hostile cache yields an error or nothing: never a result that the key can't
// have, and never without end.
func TestHostile(t *testing.T) {
	k := stepOn("step")
	root := record{Digest: k.deps[0].key.record()}
	fit := record{Digest: k.record(), Inputs: [][]link{{{"sel", 0}}}}
	with := func(r record, layers ...int) record {
		for _, l := range layers {
			r.Results = append(r.Results, result{Layer: l})
		}
		return r
	}
	two := []layer{{digest.FromString("base"), -1}, {digest.FromString("top"), 0}}
	none := map[string]config{
		"no layer":          {two, []record{root, with(fit, 7)}},
		"negative layer":    {two, []record{root, with(fit, -2)}},
		"loop of layers":    {[]layer{{digest.FromString("base"), 1}, {digest.FromString("top"), 0}}, []record{root, with(fit, 1)}},
		"own parent":        {[]layer{{digest.FromString("base"), 0}}, []record{root, with(fit, 0)}},
		"too few layers":    {two, []record{root, with(fit, 0)}},
		"other base":        {[]layer{{digest.FromString("top"), -1}, {digest.FromString("top"), 0}}, []record{root, with(fit, 1)}},
		"unknown blob":      {[]layer{{digest.FromString("base"), -1}, {digest.FromString("nowhere"), 0}}, []record{root, with(fit, 1)}},
		"no diffID":         {[]layer{{digest.FromString("base"), -1}, {digest.FromString("plain"), 0}}, []record{root, with(fit, 1)}},
		"sha512 diffID":     {[]layer{{digest.FromString("base"), -1}, {digest.FromString("long"), 0}}, []record{root, with(fit, 1)}},
		"no size":           {[]layer{{digest.FromString("base"), -1}, {digest.FromString("void"), 0}}, []record{root, with(fit, 1)}},
		"chain out of it":   {two, []record{root, {Digest: k.record(), Inputs: fit.Inputs, Chains: []chain{{Layers: []int{0, 9}}}}}},
		"other selector":    {two, []record{root, with(record{Digest: k.record(), Inputs: [][]link{{{"les", 0}}}}, 1)}},
		"its own input":     {two, []record{root, with(record{Digest: k.record(), Inputs: [][]link{{{"sel", 1}}}}, 1)}},
		"one input more":    {two, []record{root, with(record{Digest: k.record(), Inputs: [][]link{{{"sel", 0}}, {{"sel", 0}}}}, 1)}},
		"no inputs":         {two, []record{root, with(record{Digest: k.record()}, 1)}},
		"empty input":       {two, []record{root, with(record{Digest: k.record(), Inputs: [][]link{{}}}, 1)}},
		"base that is none": {two, []record{{Digest: root.Digest, Inputs: [][]link{{{"", 1}}}}, with(fit, 1)}},
	}
	blobs := []ocispec.Descriptor{blobOf("base"), blobOf("top"), blobOf("plain"), blobOf("long"), blobOf("void")}
	blobs[2].Annotations = nil
	blobs[3].Annotations[Uncompressed] = "sha512:" + strings.Repeat("0", 128)
	blobs[4].Size = 0
	find := func(c config) ([]Result, error) {
		data, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		m, err := Parse(data, blobs)
		if err != nil {
			return nil, err
		}
		return m.Find(t.Context(), k, false)
	}
	if found, err := find(config{two, []record{root, with(fit, 1)}}); err != nil || len(found) != 1 || found[0].Layers[1].Digest != two[1].Blob {
		t.Fatalf("a good one: found %v, %v", found, err)
	}
	for name, c := range none {
		if found, err := find(c); err != nil || len(found) > 0 {
			t.Errorf("%s: found %v, %v", name, found, err)
		}
	}
	for name, c := range map[string]config{
		"link to nowhere":  {two, []record{root, {Digest: k.record(), Inputs: [][]link{{{"sel", 2}}}}}},
		"negative link":    {two, []record{root, {Digest: k.record(), Inputs: [][]link{{{"sel", -1}}}}}},
		"too many records": {two, make([]record, maxRecords+1)},
	} {
		if _, err := find(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// Contents count where a definition does not fit, and only if that is allowed.
func TestFindByContent(t *testing.T) {
	contents := digest.FromString("contents")
	var asked int
	copied := &content{find: func(context.Context) (digest.Digest, error) {
		asked++
		return contents, nil
	}}
	k := stepOn("copy")
	k.deps = append(k.deps, dep{key: stepOn("elsewhere"), selector: "path", content: copied})
	c := config{
		[]layer{{digest.FromString("base"), -1}, {digest.FromString("old"), 0}, {digest.FromString("new"), 0}},
		[]record{
			{Digest: k.deps[0].key.record()}, {Digest: outputDigest(contents, contentOutput)},
			{Digest: k.record(), Inputs: [][]link{{{"sel", 0}}, {{"", 1}}}, Results: []result{{1, time.Unix(1, 0)}, {2, time.Unix(2, 0)}}},
		},
	}
	m, err := newManifest(c, []ocispec.Descriptor{blobOf("base"), blobOf("old"), blobOf("new")})
	if err != nil {
		t.Fatal(err)
	}
	if found, err := m.Find(t.Context(), k, true); err != nil || len(found) > 0 || asked > 0 {
		t.Errorf("near: found %v, asked for the contents %d times (%v)", found, asked, err)
	}
	found, err := m.Find(t.Context(), k, false)
	if err != nil || len(found) != 2 || found[0].Layers[1].Digest != digest.FromString("new") {
		t.Errorf("found %v, %v; want the newest of two first", found, err)
	}
	copied.d, copied.find = "", func(context.Context) (digest.Digest, error) { return "", errors.New("not there") }
	if m, err = newManifest(c, nil); err != nil {
		t.Fatal(err)
	}
	if m.Knows(t.Context(), k) {
		t.Error("known by contents that there are not")
	}
}

// An image's configuration has the records, and the image the layers.
func TestInline(t *testing.T) {
	k := stepOn("step")
	records, err := json.Marshal([]record{
		{Digest: k.deps[0].key.record()},
		{Digest: k.record(), Inputs: [][]link{{{"sel", 0}}}, Chains: []chain{{Layers: []int{0, 1}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	field, err := json.Marshal(records)
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q,%q]},%q:%s}`,
		digest.FromString("diff base"), digest.FromString("diff top"), InlineField, field)
	desc := func(mediaType string, data []byte) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: desc(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{blobOf("base"), blobOf("top")}}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	index, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{desc(ocispec.MediaTypeImageManifest, raw)}})
	if err != nil {
		t.Fatal(err)
	}
	docs := map[digest.Digest][]byte{digest.FromBytes(raw): raw, digest.FromBytes(config): config}
	get := func(_ context.Context, d ocispec.Descriptor) ([]byte, error) { return docs[d.Digest], nil }
	for mediaType, data := range map[string][]byte{ocispec.MediaTypeImageManifest: raw, ocispec.MediaTypeImageIndex: index} {
		list, err := Read(t.Context(), desc(mediaType, data), data, get)
		if err != nil || len(list) != 1 {
			t.Fatalf("%s: %d caches, %v", mediaType, len(list), err)
		}
		found, err := list[0].Find(t.Context(), k, true)
		if err != nil || len(found) != 1 || found[0].Layers[1].Digest != digest.FromString("top") {
			t.Errorf("%s: found %v, %v", mediaType, found, err)
		}
	}
}

// An index of blobs is a cache.
func TestReadIndex(t *testing.T) {
	k := stepOn("step")
	config, err := json.Marshal(config{
		[]layer{{digest.FromString("base"), -1}, {digest.FromString("top"), 0}},
		[]record{{Digest: k.deps[0].key.record()}, {Digest: k.record(), Inputs: [][]link{{{"sel", 0}}}, Results: []result{{Layer: 1}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c := ocispec.Descriptor{MediaType: MediaType, Digest: digest.FromBytes(config), Size: int64(len(config))}
	raw, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{blobOf("base"), c, blobOf("top")}})
	if err != nil {
		t.Fatal(err)
	}
	get := func(context.Context, ocispec.Descriptor) ([]byte, error) { return config, nil }
	list, err := Read(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex}, raw, get)
	if err != nil || len(list) != 1 {
		t.Fatalf("%d caches, %v", len(list), err)
	}
	if found, err := list[0].Find(t.Context(), k, true); err != nil || len(found) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
}

func FuzzParse(f *testing.F) {
	k := stepOn("step")
	good, err := json.Marshal(config{
		[]layer{{digest.FromString("base"), -1}, {digest.FromString("top"), 0}},
		[]record{{Digest: k.deps[0].key.record()}, {Digest: k.record(), Inputs: [][]link{{{"sel", 0}}}, Results: []result{{Layer: 1}}}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data, []ocispec.Descriptor{blobOf("base"), blobOf("top")})
		if err != nil {
			return
		}
		found, err := m.Find(t.Context(), k, false)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range found {
			if len(r.Layers) != 2 || r.Layers[0].Digest != digest.FromString("base") {
				t.Errorf("result %v is not on its base", r.Layers)
			}
		}
	})
}
