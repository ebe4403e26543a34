package buildkitapi

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/session/upload"

	"github.com/strake-build/strake/builder"
	"github.com/strake-build/strake/builder/source"
	"github.com/strake-build/strake/plan"
)

// uploadHost is the host of URLs that stand for what a client has: a context
// that it reads from its stdin.
const uploadHost = "buildkit-session"

// upload fetches a file from the client, and makes a directory of it.
func (j *job) upload(u *url.URL, name string) (_ *plan.Local, err error) {
	c, err := j.caller()
	if err != nil {
		return nil, err
	}
	up, err := upload.New(j.ctx, c, u)
	if err != nil {
		return nil, err
	}
	dir, err := j.store.Builder.Root.TempDir("upload-")
	if err != nil {
		return nil, err
	}
	j.onClose(func() error { return os.RemoveAll(dir) })
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	_, err = up.WriteTo(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, ended(j.ctx, err)
	}
	d, err := source.OpenDir(dir, source.DirOptions{Index: j.store.Builder.Index})
	if err != nil {
		return nil, err
	}
	j.onClose(d.Close)
	key, l := j.local(localSpec{name: u.String()})
	l.once.Do(func() { l.dir, l.l = dir, builder.Local{Dir: d} })
	return &plan.Local{Name: key}, nil
}
