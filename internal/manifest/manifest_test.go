package manifest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/platforms"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// documents are what there is to fetch.
type documents map[digest.Digest][]byte

func (d documents) fetch(_ context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if raw, ok := d[desc.Digest]; ok {
		return raw, nil
	}
	return nil, errors.New("no such document")
}

func (d documents) add(mediaType string, v any) ocispec.Descriptor {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	d[desc.Digest] = raw
	return desc
}

func (d documents) image(p ocispec.Platform) ocispec.Descriptor {
	config := d.add(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: p})
	return d.add(ocispec.MediaTypeImageManifest, ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{}})
}

func (d documents) index(entries ...ocispec.Descriptor) ocispec.Descriptor {
	return d.add(ocispec.MediaTypeImageIndex, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: entries})
}

func (d documents) choose(desc ocispec.Descriptor, p ocispec.Platform) (*Image, error) {
	return Choose(context.Background(), desc, d[desc.Digest], p, d.fetch)
}

var linux = ocispec.Platform{OS: "linux", Architecture: "amd64"}

func with(d ocispec.Descriptor, p ocispec.Platform) ocispec.Descriptor {
	d.Platform = &p
	return d
}

func TestChooseAsksForPlatforms(t *testing.T) {
	t.Parallel()
	d := documents{}
	amd64, arm := d.image(linux), d.image(ocispec.Platform{OS: "linux", Architecture: "arm64"})
	artifact := d.add(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Config: ocispec.Descriptor{MediaType: "application/x", Digest: digest.FromString("x")}, Layers: []ocispec.Descriptor{},
	})
	img, err := d.choose(d.index(artifact, arm, amd64), linux)
	if err != nil || img.Desc.Digest != amd64.Digest || img.Desc.Platform.Architecture != "amd64" {
		t.Errorf("got %+v, %v", img, err)
	}
	// A variant of the same architecture: the one itself wins, wherever it is.
	v2 := with(d.image(ocispec.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"}), ocispec.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"})
	i386 := with(d.image(ocispec.Platform{OS: "linux", Architecture: "386"}), ocispec.Platform{OS: "linux", Architecture: "386"})
	x := d.index(i386, with(amd64, linux), v2)
	if img, err = d.choose(x, linux); err != nil || img.Desc.Digest != amd64.Digest {
		t.Errorf("amd64: got %+v, %v", img, err)
	}
	if img, err = d.choose(x, *v2.Platform); err != nil || img.Desc.Digest != v2.Digest {
		t.Errorf("amd64/v2: got %+v, %v", img, err)
	}
}

func TestChooseIsBounded(t *testing.T) {
	t.Parallel()
	d := documents{}
	var entries []ocispec.Descriptor
	for i := range 2 * maxProbes {
		entries = append(entries, d.image(ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("cpu", i)}))
	}
	if _, err := d.choose(d.index(entries...), linux); err == nil || !strings.Contains(err.Error(), "too many manifests") {
		t.Errorf("got %v", err)
	}
	entries = nil
	for i := range 2 * maxProbes {
		entries = append(entries, d.index(with(d.image(linux), ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("cpu", i)})))
	}
	if _, err := d.choose(d.index(entries...), linux); err == nil || !strings.Contains(err.Error(), "too many indexes") {
		t.Errorf("got %v", err)
	}
	large := d.image(linux)
	large.Size = Limit + 1
	if _, err := d.choose(d.index(with(large, linux)), linux); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("got %v", err)
	}
}

func TestChooseVerifies(t *testing.T) {
	t.Parallel()
	d := documents{}
	good := with(d.image(linux), linux)
	d[good.Digest] = append([]byte(" "), d[good.Digest]...)
	if _, err := d.choose(d.index(good), linux); err == nil {
		t.Error("a changed manifest was taken")
	}
}

func TestMediaTypesGoThereAndBack(t *testing.T) {
	t.Parallel()
	for _, docker := range []string{DockerManifest, DockerList, DockerConfig, DockerLayer, DockerLayerGzip, DockerLayerZstd, DockerForeign, DockerForeignGzip} {
		oci := OCIType(docker)
		if !strings.HasPrefix(oci, "application/vnd.oci.") || DockerType(oci) != docker || OCIType(oci) != oci {
			t.Errorf("%s is %s, and that is %s", docker, oci, DockerType(oci))
		}
	}
	if OCIType("x") != "x" || DockerType("x") != "x" {
		t.Error("an unknown type was changed")
	}
}

// FuzzChoose: whatever a registry sends, few documents are asked for, and the
// image that is chosen is one for the platform, its documents what their
// digests say.
func FuzzChoose(f *testing.F) {
	d := documents{}
	m := d.image(linux)
	x := d.index(m, with(m, linux))
	for _, seed := range [][]byte{
		d[m.Digest], d[x.Digest], d[d.index(x, m).Digest], d[d.index(with(m, ocispec.Platform{OS: "linux", Architecture: "arm64"}), with(m, linux)).Digest],
		[]byte(`{"manifests":[null]}`), []byte(`{"manifests":[{"digest":"sha256:x"}]}`), []byte("{}"),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		mediaType, err := Type(raw, "")
		if err != nil {
			return
		}
		if IsIndex(mediaType) == IsManifest(mediaType) {
			t.Fatalf("type %q", mediaType)
		}
		fetched := 0
		fetch := func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
			fetched++
			return d.fetch(ctx, desc)
		}
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		img, err := Choose(t.Context(), desc, raw, linux, fetch)
		// Each probe asks for a manifest and a configuration, and so does what
		// is chosen.
		if fetched > 2*maxProbes+2 {
			t.Errorf("%d documents were asked for", fetched)
		}
		if err != nil {
			return
		}
		if img.Desc.Platform == nil || img.Desc.Digest != digest.FromBytes(img.Raw) || img.Manifest.Config.Digest != digest.FromBytes(img.Config) {
			t.Errorf("chose %+v", img)
		}
		if img.Index != "" && !platforms.Only(linux).Match(*img.Desc.Platform) {
			t.Errorf("chose %+v for %+v", img.Desc.Platform, linux)
		}
		if again, err := Parse(img.Raw); err != nil || !cmp.Equal(again, img.Manifest) {
			t.Errorf("the manifest is not the one that was checked: %v", err)
		}
	})
}

// FuzzConfig: a configuration that is taken fits its manifest, and says the same
// when it is written and read again.
func FuzzConfig(f *testing.F) {
	d := documents{}
	m := d.image(linux)
	var manifest ocispec.Manifest
	if err := json.Unmarshal(d[m.Digest], &manifest); err != nil {
		f.Fatal(err)
	}
	f.Add(d[m.Digest], d[manifest.Config.Digest])
	f.Add(d[m.Digest], []byte(`{"rootfs":{"diff_ids":["sha256:x"]},"config":{"Env":["A"],"Volumes":{"":{}}}}`))
	f.Add([]byte(`{"config":null,"layers":[{}]}`), []byte(`{"rootfs":null}`))
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		m, err := Parse(raw)
		if err != nil {
			return
		}
		img, err := Config(m, config)
		if err != nil {
			return
		}
		if len(img.RootFS.DiffIDs) != len(m.Layers) {
			t.Fatalf("%d diffIDs for %d layers", len(img.RootFS.DiffIDs), len(m.Layers))
		}
		for _, id := range img.RootFS.DiffIDs {
			if len(id.Encoded()) != 64 || strings.ContainsAny(id.Encoded(), "./") { // they name directories
				t.Fatalf("diffID %q", id)
			}
		}
		written, err := json.Marshal(img)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again, err := Config(m, written)
		if diff := cmp.Diff(img, again, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("read again: %v (-first +second)\n%s", err, diff)
		}
	})
}
