package buildkitapi

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/opencontainers/go-digest"
	pkgerrors "github.com/pkg/errors"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/strake-build/strake/attest"
	"github.com/strake-build/strake/attest/provenance"
)

// The types of the blobs of a record.
const (
	typeLogs  = "application/vnd.buildkit.status.v0"
	typeError = "application/vnd.googleapis.google.rpc.status+proto"
	typeTrace = "application/vnd.buildkit.otlp.json.v0"
)

// ended completes the record of a build.
func (h *history) ended(j *job, r *controlapi.BuildHistoryRecord, response map[string]string, failed error) {
	j.board.close()
	if j.req.Internal {
		return
	}
	entries, c := j.board.all()
	done := r.CloneVT()
	done.CompletedAt, done.ExporterResponse, done.Result = timestamppb.Now(), response, &controlapi.BuildResultInfo{}
	done.NumCachedSteps, done.NumTotalSteps, done.NumCompletedSteps, done.NumWarnings = c.cached, c.total, c.completed, c.warnings
	err := h.fill(done, entries, failed)
	if failed == nil {
		err = errors.Join(err, h.describe(done, j))
	}
	if err != nil {
		h.warn(fmt.Errorf("history of build %s: %w", j.ref, err))
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.find(r.Ref)
	if err != nil || h.records[i] != r {
		return // another build has the ref by now
	}
	h.records[i] = done
	h.write(done)
	h.event(controlapi.BuildHistoryEventType_COMPLETE, done)
	h.trim()
}

// describe adds the provenance of what was built, with all that is known.
func (h *history) describe(r *controlapi.BuildHistoryRecord, j *job) error {
	res := j.built()
	if res == nil {
		return nil
	}
	entries, err := res.entries(j.s.o.Platforms[0])
	if err != nil {
		return err
	}
	for _, e := range entries {
		a, err := provenance.New(provenance.Options{}, j.describe(e.ref), provenance.Target{Result: e.ref.input(), Platform: &e.platform})
		if err != nil {
			return err
		}
		predicate, err := a.Predicate(j.ctx, nil)
		if err != nil {
			return err
		}
		desc, err := h.put(attest.MediaTypePayload, predicate)
		if err != nil {
			return err
		}
		desc.Annotations = map[string]string{"in-toto.io/predicate-type": a.PredicateType}
		info := r.Result
		if res.many != nil {
			info = &controlapi.BuildResultInfo{}
			if r.Results == nil {
				r.Results = map[string]*controlapi.BuildResultInfo{}
			}
			r.Results[e.id] = info
		}
		info.Attestations = append(info.Attestations, desc)
	}
	return nil
}

// fill adds logs, error and trace.
func (h *history) fill(r *controlapi.BuildHistoryRecord, entries []*controlapi.StatusResponse, failed error) error {
	logs, err := marshalLogs(entries)
	if err != nil {
		return err
	}
	if r.Logs, err = h.put(typeLogs, logs); err != nil {
		return err
	}
	trace, err := marshalTrace(r, entries)
	if err != nil {
		return err
	}
	if r.Trace, err = h.put(typeTrace, trace); err != nil {
		return err
	}
	if failed == nil {
		return nil
	}
	st := errorStatus(failed)
	data, err := proto.Marshal(st)
	if err != nil {
		return err
	}
	// Details make the record large; they are in the blob.
	r.Error = &spb.Status{Code: st.Code, Message: st.Message}
	r.ExternalError, err = h.put(typeError, data)
	return err
}

// errorStatus is an error as clients get it, with the place in the daemon where
// it was met: for reports of bugs.
func errorStatus(err error) *spb.Status {
	if st, ok := grpcerrors.AsGRPCStatus(grpcerrors.ToGRPC(context.Background(), pkgerrors.WithStack(err))); ok {
		return st.Proto()
	}
	return status.New(codes.Unknown, err.Error()).Proto()
}

// marshalLogs is the progress of a build as one blob: messages with their
// lengths before them.
func marshalLogs(entries []*controlapi.StatusResponse) ([]byte, error) {
	var out []byte
	for _, r := range bundled(entries) {
		data, err := r.MarshalVT()
		if err != nil {
			return nil, err
		}
		out = binary.LittleEndian.AppendUint32(out, uint32(len(data)))
		out = append(out, data...)
	}
	return out, nil
}

// replay sends the progress of a build that has ended.
func (h *history) replay(r *controlapi.BuildHistoryRecord, send func(*controlapi.StatusResponse) error) error {
	if r.Logs == nil {
		return nil
	}
	f, err := h.blobs.Reader(digest.Digest(r.Logs.Digest), r.Logs.Size)
	if err != nil {
		return fmt.Errorf("logs of build %s: %w", r.Ref, err)
	}
	defer f.Close()
	for {
		var head [4]byte
		_, err := io.ReadFull(f, head[:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		n := binary.LittleEndian.Uint32(head[:])
		if err == nil && int64(n) > r.Logs.Size {
			err = errors.New("damaged")
		}
		if err != nil {
			return fmt.Errorf("logs of build %s: %w", r.Ref, err)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(f, data); err != nil {
			return fmt.Errorf("logs of build %s: %w", r.Ref, err)
		}
		m := &controlapi.StatusResponse{}
		if err := m.UnmarshalVT(data); err != nil {
			return fmt.Errorf("logs of build %s: %w", r.Ref, err)
		}
		if err := send(m); err != nil {
			return err
		}
	}
}

// recorded is the record of a build that has ended; nil if there is none.
func (h *history) recorded(ref string) *controlapi.BuildHistoryRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, err := h.find(ref)
	if err != nil || h.records[i].CompletedAt == nil {
		return nil
	}
	return h.records[i].CloneVT()
}

// A trace is a list of spans in the form that OpenTelemetry's Go library gives
// them in JSON: one for the build, and one for each vertex.
type (
	span struct {
		Name                   string
		SpanContext, Parent    spanContext
		SpanKind               int
		StartTime, EndTime     time.Time
		Attributes             []spanAttribute
		Status                 spanStatus
		ChildSpanCount         int
		Resource               []spanAttribute
		InstrumentationLibrary struct{ Name string }
	}
	spanContext   struct{ TraceID, SpanID, TraceFlags string }
	spanAttribute struct {
		Key   string
		Value struct {
			Type  string
			Value any
		}
	}
	spanStatus struct{ Code, Description string }
)

const spanInternal = 1 // a SpanKind

func attribute(key, kind string, value any) (a spanAttribute) {
	a.Key, a.Value.Type, a.Value.Value = key, kind, value
	return a
}

func marshalTrace(r *controlapi.BuildHistoryRecord, entries []*controlapi.StatusResponse) ([]byte, error) {
	var random [16]byte
	rand.Read(random[:])
	trace := hex.EncodeToString(random[:])
	resource := []spanAttribute{attribute("service.name", "STRING", "strake")}
	n := uint64(0)
	next := func(name string, from, to *timestamppb.Timestamp, failed string) *span {
		n++
		s := &span{
			Name: name, SpanKind: spanInternal, StartTime: from.AsTime(), EndTime: to.AsTime(), Resource: resource,
			SpanContext: spanContext{trace, fmt.Sprintf("%016x", n), "01"},
			Parent:      spanContext{hex.EncodeToString(make([]byte, 16)), fmt.Sprintf("%016x", 0), "00"},
			Status:      spanStatus{Code: "Unset"},
		}
		s.InstrumentationLibrary.Name = "github.com/strake-build/strake"
		if failed != "" {
			s.Status = spanStatus{"Error", failed}
		}
		return s
	}
	spans := []*span{next("build", r.CreatedAt, r.CompletedAt, r.Error.GetMessage())}
	for _, v := range lastVertices(entries) {
		if v.Started == nil || v.Completed == nil {
			continue
		}
		s := next(v.Name, v.Started, v.Completed, v.Error)
		s.Parent = spans[0].SpanContext
		s.Attributes = []spanAttribute{attribute("vertex", "STRING", v.Digest), attribute("cached", "BOOL", v.Cached)}
		spans = append(spans, s)
	}
	spans[0].ChildSpanCount = len(spans) - 1
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	for _, s := range spans {
		if err := e.Encode(s); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// lastVertices is how each vertex ended, in the order of their beginnings.
func lastVertices(entries []*controlapi.StatusResponse) (out []*controlapi.Vertex) {
	at := map[string]int{}
	for _, e := range entries {
		for _, v := range e.Vertexes {
			i, ok := at[v.Digest]
			if !ok {
				at[v.Digest] = len(out)
				out = append(out, v)
				continue
			}
			out[i] = v
		}
	}
	return out
}
