package faults

import (
	"archive/tar"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/strake-build/strake/internal/testbed"
)

// server is strake serve with one client.
type server struct {
	b *bed
	*running
	addr string
	conn *grpc.ClientConn

	mu    sync.Mutex
	wires []net.Conn // of the client
}

// serve starts strake serve, in the place of one that may have been killed.
func (b *bed) serve() *server {
	b.Helper()
	b.allow(1 << 20) // the history of builds, and the context's archive
	s := &server{b: b, addr: filepath.Join(b.dir, "socket")}
	s.running = b.start(b.s.Command("serve", "--addr", "unix://"+s.addr))
	var err error
	s.conn, err = grpc.NewClient("unix://"+s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(s.dial))
	b.must(err)
	testbed.Eventually(b.T, "the daemon", func() bool {
		_, err := controlapi.NewControlClient(s.conn).Info(context.Background(), &controlapi.InfoRequest{}, grpc.WaitForReady(true))
		return err == nil
	})
	return s
}

func (s *server) dial(ctx context.Context, _ string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", s.addr)
	if err == nil {
		s.mu.Lock()
		s.wires = append(s.wires, c)
		s.mu.Unlock()
	}
	return c, err
}

// cut ends the client's connections as the end of its process does.
func (s *server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.wires {
		c.Close()
	}
}

func (s *server) kill() { _ = s.cmd.Process.Kill() }

// solve builds a build file of the lab and pushes the image to a registry, with
// the base image from another.
func (s *server) solve(file, from, to string) error {
	l := s.b.lab
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := controlapi.NewControlClient(s.conn).Solve(ctx, &controlapi.SolveRequest{
		Ref: fmt.Sprint("solve-", time.Now().UnixNano()), Frontend: "dockerfile.v0",
		FrontendAttrs: map[string]string{"context": l.archived(), "filename": file, "context:" + l.base: "docker-image://" + from + strings.TrimPrefix(l.base, l.host)},
		Exporters:     []*controlapi.Exporter{{Type: "image", Attrs: map[string]string{"name": to + "/served:latest", "push": "true"}}},
	})
	return err
}

// end stops the daemon as a service manager does.
func (s *server) end() {
	s.b.Helper()
	s.conn.Close()
	s.b.must(s.cmd.Process.Signal(syscall.SIGTERM))
	if r := s.wait(); r.signal != 0 || r.code != 0 && r.code != 143 {
		s.b.Errorf("it did not end well: %v", r)
	}
}

// archived is the address of the lab's context as an archive. In it is one build
// file more, whose step waits.
func (l *lab) archived() string {
	return lazily(l, l.stores, "archived context", func() string {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			tw := tar.NewWriter(w)
			if err := tw.AddFS(os.DirFS(l.context)); err != nil {
				panic(http.ErrAbortHandler)
			}
			_ = testbed.TarFile(tw, "wait.Dockerfile", 0o644, []byte("FROM "+l.base+"\nRUN echo made > /made\nRUN (setsid sleep "+l.waiting()+" &) ; sleep "+l.waiting()+"\n"))
			tw.Close()
		})
		s := httptest.NewServer(h)
		l.root.Cleanup(s.Close)
		return s.URL + "/context.tar"
	})
}

// waiting is the word that marks the step which waits.
func (l *lab) waiting() string { return lazily(l, l.stores, "word of the step that waits", marker) }

// works has a daemon build the lab's image, and end.
func (b *bed) works() {
	b.Helper()
	s := b.serve()
	b.must(s.solve("Dockerfile", b.lab.host, strings.TrimSuffix(b.image, "/"+filepath.Base(b.image))))
	s.end()
}

// serveFaults are of strake serve and its clients.
func serveFaults() []fault {
	const outcome = "the next start works, and nothing is left"
	// hit does something to the daemon in the middle of a request to a registry:
	// where a layer comes from, or where the image goes.
	hit := func(pull, push match, at int, f func(s *server)) func(b *bed) *server {
		return func(b *bed) *server {
			from, into := newWire(b.T, to(b.lab.host)), newWire(b.T, emptyRegistry())
			s := b.serve()
			fault := func(w *wire, n int, rw http.ResponseWriter, r *http.Request) bool {
				if n > 0 {
					return false
				}
				if pull != nil {
					cut(at, func(w *wire, rw http.ResponseWriter, r *http.Request) { f(s); resets(w, rw, r) })(w, rw, r)
				}
				f(s)
				resets(w, rw, r)
				return true
			}
			met := from
			if pull != nil {
				from.breaks(pull, fault)
			} else {
				into.breaks(push, fault)
				met = into
			}
			_ = s.solve("Dockerfile", from.host, into.host)
			if met.mend() == 0 {
				b.Error("it has not met with the fault")
			}
			return s
		}
	}
	// at does something to the daemon while a step runs, or after a time.
	running := func(f func(s *server)) func(b *bed) *server {
		return func(b *bed) *server {
			s := b.serve()
			done := make(chan error, 1)
			go func() { done <- s.solve("wait.Dockerfile", b.lab.host, b.lab.host) }()
			mine := func() bool { return b.runs(s.cmd.Process.Pid, b.lab.waiting()) }
			testbed.Eventually(b.T, "the step", mine)
			f(s)
			<-done
			testbed.Eventually(b.T, "the end of the step", func() bool { return !mine() })
			return s
		}
	}
	after := func(d time.Duration, f func(s *server)) func(b *bed) *server {
		return func(b *bed) *server {
			s := b.serve()
			done := make(chan error, 1)
			go func() { done <- s.solve("Dockerfile", b.lab.host, b.lab.host) }()
			time.Sleep(d)
			f(s)
			<-done
			return s
		}
	}
	points := func(f func(s *server), then func(b *bed, s *server)) func(l *lab) []point {
		return func(l *lab) (list []point) {
			p := l.parts()
			all := map[string]func(b *bed) *server{"in a step": running(f)}
			for kind, m := range p.kinds() {
				all["at the "+kind] = hit(m, nil, 0, f)
			}
			for _, at := range offsets(p.layerSize) {
				all[fmt.Sprintf("in a layer, byte %d", at)] = hit(p.layer, nil, at, f)
			}
			for kind, m := range map[string]match{"HEAD": is(http.MethodHead, "/blobs/"), "POST": is(http.MethodPost, "/uploads/"), "PUT": is(http.MethodPut, "/uploads/"), "manifest": is(http.MethodPut, "/manifests/")} {
				all["in the push, "+kind] = hit(nil, m, 0, f)
			}
			for i := range 20 {
				all[fmt.Sprintf("after %03d ms", 5+i*20)] = after(time.Duration(5+i*20)*time.Millisecond, f)
			}
			for name, run := range inOrder(all) {
				list = append(list, point{name, func(b *bed) { then(b, run(b)) }})
			}
			return list
		}
	}
	dead := func(b *bed, s *server) {
		s.conn.Close()
		s.wait()
		b.noProcesses()
		b.works()
	}
	alive := func(b *bed, s *server) {
		// It goes on with others as if nothing had been.
		other := &server{b: b, running: s.running, addr: s.addr}
		var err error
		other.conn, err = grpc.NewClient("unix://"+s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(other.dial))
		b.must(err)
		b.must(other.solve("Dockerfile", b.lab.host, b.lab.host))
		s.conn.Close()
		other.end()
	}
	return []fault{
		{name: "serve/killed", outcome: outcome, points: points((*server).kill, dead)},
		{name: "serve/stopped", outcome: "builds end, " + outcome, points: points(func(s *server) { _ = s.cmd.Process.Signal(syscall.SIGTERM) }, dead)},
		{name: "serve/its client is killed", outcome: "the build ends, others go on", points: points((*server).cut, alive)},
	}
}

// runs reports whether a marked process runs below another one.
func (b *bed) runs(pid int, word string) bool {
	for _, p := range marked(word) {
		if above(p, pid) != nil {
			return true
		}
	}
	return false
}
