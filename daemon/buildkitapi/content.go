package buildkitapi

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/strake-build/strake/layers/blob"
)

// contentService lets clients read the blobs of the history. It can't be written
// to.
type contentService struct {
	contentapi.UnimplementedContentServer
	blobs *blob.Store
}

func (c contentService) stat(text string) (digest.Digest, int64, error) {
	d, err := digest.Parse(text)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return "", 0, status.Errorf(codes.InvalidArgument, "%q is not a SHA-256 digest", text)
	}
	size, err := c.blobs.Stat(d)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, status.Errorf(codes.NotFound, "content %s: not found", d)
	}
	return d, size, err
}

func (c contentService) Info(_ context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	d, size, err := c.stat(req.Digest)
	if err != nil {
		return nil, err
	}
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: d.String(), Size: size}}, nil
}

// chunk is how much of a blob is sent in one message.
const chunk = 1 << 20

func (c contentService) Read(req *contentapi.ReadContentRequest, stream contentapi.Content_ReadServer) error {
	d, size, err := c.stat(req.Digest)
	if err != nil {
		return err
	}
	if req.Offset < 0 || req.Offset > size {
		return status.Errorf(codes.OutOfRange, "content %s has %d bytes, and none at %d", d, size, req.Offset)
	}
	n := size - req.Offset
	if req.Size > 0 {
		n = min(n, req.Size)
	}
	r, err := c.blobs.Reader(d, size)
	if err != nil {
		return err
	}
	defer r.Close()
	// From the beginning, so that it is checked against its digest if it is
	// read to its end.
	if _, err := io.CopyN(io.Discard, r, req.Offset); err != nil {
		return err
	}
	w := bufio.NewWriterSize(&contentWriter{stream: stream, offset: req.Offset}, chunk)
	if _, err := io.CopyN(w, r, n); err != nil {
		return err
	}
	return w.Flush()
}

type contentWriter struct {
	stream contentapi.Content_ReadServer
	offset int64
}

func (w *contentWriter) Write(p []byte) (int, error) {
	if err := w.stream.Send(&contentapi.ReadContentResponse{Offset: w.offset, Data: p}); err != nil {
		return 0, err
	}
	w.offset += int64(len(p))
	return len(p), nil
}
