package buildkitapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/util/staticfs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/strake-build/strake/builder/export"
	"github.com/strake-build/strake/layers"
	"github.com/strake-build/strake/layers/compress"
	"github.com/strake-build/strake/layers/snapshot"
	"github.com/strake-build/strake/progress"
	"github.com/strake-build/strake/registry"
)

// output is one exporter of a Solve.
type output struct {
	export.Output
	id     int // of the exporter, in the client's session
	epoch  bool
	split  *bool // local: a directory for each platform
	delete bool  // local: what else is there is removed
}

// outputs reads the exporters of the request.
func (j *job) outputs() ([]output, error) {
	list := j.req.Exporters
	if len(list) == 0 && j.req.ExporterDeprecated != "" {
		list = []*controlapi.Exporter{{Type: j.req.ExporterDeprecated, Attrs: j.req.ExporterAttrsDeprecated}}
	}
	var out []output
	for i, e := range list {
		o, err := outputOf(e.GetType(), e.GetAttrs())
		if err != nil {
			return nil, err
		}
		o.id = i
		out = append(out, o)
	}
	return out, nil
}

func outputOf(typ string, attrs map[string]string) (output, error) {
	o := output{Output: export.Output{Type: typ, Tar: true}}
	switch typ {
	case export.TypeImage, export.TypeOCI, export.TypeDocker, export.TypeLocal, export.TypeTar:
	default:
		return o, fmt.Errorf("exporter %q could not be found", typ)
	}
	oci := typ == export.TypeOCI
	for k, v := range attrs {
		if err := o.set(k, v, &oci); err != nil {
			return o, fmt.Errorf("%s exporter: %w", typ, err)
		}
	}
	if _, said := attrs["oci-mediatypes"]; !said {
		oci = typ != export.TypeDocker
	}
	o.Pack.Docker = !oci
	return o, nil
}

func (o *output) set(key, value string, oci *bool) (err error) {
	flag := func(b *bool) error {
		if value == "" {
			*b = true
			return nil
		}
		if *b, err = strconv.ParseBool(value); err != nil {
			return fmt.Errorf("non-bool value specified for %s", key)
		}
		return nil
	}
	switch key {
	case "name":
		for n := range strings.SplitSeq(value, ",") {
			if n = strings.TrimSpace(n); n == "" || n == "*" {
				continue
			}
			ref, err := registry.Normalize(n)
			if err != nil {
				return fmt.Errorf("failed to parse %s: %w", n, err)
			}
			o.Names = append(o.Names, ref)
		}
	case "push":
		return flag(&o.Push)
	case "tar":
		return flag(&o.Tar)
	case "oci-mediatypes":
		return flag(oci)
	case "compression":
		switch c := compress.Algorithm(value); c {
		case compress.None, compress.Gzip, compress.Zstd, compress.Estargz:
			o.Pack.Compression = c
		default:
			return fmt.Errorf("unsupported layer compression type %v", value)
		}
	case "compression-level":
		if o.Pack.Level, err = strconv.Atoi(value); err != nil {
			return fmt.Errorf("non-int value %s specified for %s", value, key)
		}
		if o.Pack.Level == 0 {
			o.Pack.Level = compress.LevelZero
		}
	case "force-compression":
		return flag(&o.Pack.Force)
	case "rewrite-timestamp":
		return flag(&o.RewriteTimes)
	case "source-date-epoch":
		o.epoch = true
		if value != "" {
			if o.Epoch, err = parseEpoch(value); err != nil {
				return err
			}
		}
	case "platform-split":
		o.split = new(bool)
		return flag(o.split)
	case "mode":
		switch value {
		case "", "copy":
		case "delete":
			o.delete = true
		default:
			return fmt.Errorf("invalid local exporter mode %q", value)
		}
	case "push-by-digest":
		return flag(&o.ByDigest)
	case "oci-artifact":
		artifact := true
		err := flag(&artifact)
		o.Legacy = !artifact
		return err
	case "attestation-inline":
		return flag(&o.Inline)
	case "attestation-prefix":
		if strings.Contains(value, "/") {
			return fmt.Errorf("invalid %s %q: it begins a file name", key, value)
		}
		o.AttestationPrefix = value
	case "attestations":
		// Ours: index, or referrers.
		o.Referrers = value == "referrers"
	default:
		a, ok, err := export.AnnotationAttr(key, value)
		if ok {
			o.Annotations = append(o.Annotations, a)
			return err
		}
	}
	return nil
}

func parseEpoch(s string) (*time.Time, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s", s)
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}

// export delivers a result to all outputs.
func (j *job) export(res *result, outputs []output) (map[string]string, error) {
	response := map[string]string{}
	if len(outputs) == 0 || res == nil {
		return response, nil
	}
	images, err := j.images(res)
	if err != nil {
		return nil, err
	}
	for _, o := range outputs {
		if !o.epoch {
			e := string(res.metadata[keyEpoch])
			for k, v := range res.metadata {
				if e == "" && strings.HasPrefix(k, keyEpoch+"/") {
					e = string(v)
				}
			}
			if e != "" {
				if o.Epoch, err = parseEpoch(e); err != nil {
					return nil, err
				}
			}
		}
		if o.Epoch == nil {
			o.RewriteTimes = false // there is nothing to rewrite them to
		}
		values, err := j.deliver(res, images, o)
		if err != nil {
			return nil, err
		}
		for k, v := range values {
			if s, ok := v.(string); ok {
				response[k] = s
				continue
			}
			data, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			response[k] = base64.StdEncoding.EncodeToString(data)
		}
	}
	return response, nil
}

func (j *job) deliver(res *result, images []export.Image, o output) (map[string]any, error) {
	b := j.store.Builder
	o.Pack.Guard = j.guard
	x := export.Exporter{Packer: j.store.Packer, Images: b.Images, Layers: b.Layers, Registry: b.Registry, Progress: j.board.event}
	switch o.Type {
	case export.TypeImage:
		return x.Export(j.ctx, images, o.Output)
	case export.TypeLocal:
		return nil, j.local2client(res, images, o)
	}
	if !o.Tar {
		dir, err := b.Root.TempDir("layout-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir) // goes with the lease otherwise
		o.Dest = dir
		o.Type = export.TypeOCI // Docker's form is for tar files only
		response, err := x.Export(j.ctx, images, o.Output)
		if err != nil {
			return nil, err
		}
		return response, j.sendLayout(dir)
	}
	c, err := j.caller()
	if err != nil {
		return nil, err
	}
	md := map[string]string{}
	w, err := filesync.CopyFileWriter(j.ctx, md, o.id, c)
	if err != nil {
		return nil, err
	}
	x.Stdout, o.Dest = w, "-"
	response, err := x.Export(j.ctx, images, o.Output)
	return response, errors.Join(err, w.Close())
}

// local2client copies results to a directory of the client.
func (j *job) local2client(res *result, images []export.Image, o output) (err error) {
	report := j.board.event
	id := fmt.Sprintf("export %d", o.id)
	report(progress.Event{Kind: progress.Start, Vertex: id, Name: "exporting to client directory"})
	defer func() {
		done := progress.Event{Kind: progress.Done, Vertex: id}
		if err != nil {
			done.Error = err.Error()
		}
		report(done)
	}()
	c, err := j.caller()
	if err != nil {
		return err
	}
	split := res.many != nil
	if o.split != nil {
		split = *o.split
	}
	entries, err := res.entries(j.s.o.Platforms[0])
	if err != nil {
		return err
	}
	var dirs []fsutil.Dir
	for i, img := range images {
		suffix := ""
		if res.many != nil && !split {
			suffix = strings.ReplaceAll(entries[i].id, "/", "_")
		}
		fs, err := j.fs(j.ctx, img, o, suffix)
		if err != nil {
			return err
		}
		st := &fstypes.Stat{Mode: uint32(os.ModeDir | 0o755), Path: strings.ReplaceAll(entries[i].id, "/", "_")}
		if o.Epoch != nil {
			st.ModTime = o.Epoch.UnixNano()
		}
		dirs = append(dirs, fsutil.Dir{FS: fs, Stat: st})
	}
	var all []fsutil.FS
	if split {
		fs, err := fsutil.SubDirFS(dirs)
		if err != nil {
			return err
		}
		all = []fsutil.FS{fs}
	} else {
		if err := disjoint(j.ctx, dirs); err != nil {
			return err
		}
		for _, d := range dirs {
			all = append(all, d.FS)
		}
	}
	var opts []filesync.CopyToCallerOpt
	if o.delete {
		if len(all) > 1 {
			return unsupported("mode=delete for several platforms in one directory")
		}
		opts = append(opts, filesync.WithExporterMultiPlatformTransfer())
	}
	for _, fs := range all {
		err := filesync.CopyToCaller(j.ctx, fs, o.id, c, func(n int, last bool) {
			e := progress.Event{Kind: progress.Status, Vertex: id, ID: "copying files", Action: "copying files", Current: int64(n)}
			if last {
				e.Total = e.Current
			}
			report(e)
		}, opts...)
		if err != nil {
			return ended(j.ctx, err)
		}
	}
	return nil
}

// disjoint reports an error if a file is in two of the trees.
func disjoint(ctx context.Context, dirs []fsutil.Dir) error {
	if len(dirs) < 2 {
		return nil
	}
	seen := map[string]string{}
	for _, d := range dirs {
		err := d.FS.Walk(ctx, "", func(p string, e os.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			if other, ok := seen[p]; ok {
				return fmt.Errorf("cannot overwrite %s from %s with %s when split option is disabled", p, other, d.Stat.Path)
			}
			seen[p] = d.Stat.Path
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// fs are the files of an image, with what is said of them.
func (j *job) fs(ctx context.Context, img export.Image, o output, suffix string) (fsutil.FS, error) {
	var v *snapshot.View
	if len(img.Tree) > 0 {
		var err error
		if v, err = j.store.Builder.Layers.View(ctx, img.Tree, img.Sources); err != nil {
			return nil, err
		}
	}
	files, err := export.Statements(ctx, v, img, o.AttestationPrefix, suffix)
	if err != nil {
		return nil, err
	}
	var fs fsutil.FS = viewFS{ctx: ctx, v: v, epoch: o.Epoch}
	if len(files) == 0 {
		return fs, nil
	}
	said := staticfs.NewFS()
	for _, f := range files {
		st := &fstypes.Stat{Path: f.Name, Mode: 0o600, Size: int64(len(f.Data)), ModTime: layers.DefaultModTime.UnixNano()}
		if o.Epoch != nil {
			st.ModTime = o.Epoch.UnixNano()
		}
		said.Add(f.Name, st, f.Data)
	}
	return staticfs.NewMergeFS(fs, said), nil
}

// cutScheme cuts "scheme://" off.
func cutScheme(s, scheme string) (string, bool) { return strings.CutPrefix(s, scheme+"://") }
