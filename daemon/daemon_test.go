package daemon

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestListen(t *testing.T) {
	t.Parallel()
	socket := "unix://" + filepath.Join(t.TempDir(), "dir", "sock")
	for _, addr := range []string{socket, "tcp://127.0.0.1:0", "tcp://localhost:0", "tcp://[::1]:0"} {
		l, err := Listen(addr, nil)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		defer l.Close()
	}
	if l, err := Listen(socket, nil); err == nil {
		l.Close()
		t.Error("two daemons on one socket")
	}
	oneSided := &tls.Config{}
	for _, addr := range []string{"tcp://0.0.0.0:0", "tcp://:0", "tcp://192.0.2.1:0", "tcp://nonsense", "pipe://x", "/run/x"} {
		for _, secure := range []*tls.Config{nil, oneSided} {
			if l, err := Listen(addr, secure); err == nil {
				l.Close()
				t.Errorf("%s was listened on", addr)
			}
		}
	}
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue writes a certificate for name, with its key and the authority's own.
func (a *authority) issue(name string) TLSFiles {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	write := func(name, kind string, der []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			a.t.Fatal(err)
		}
		return p
	}
	return TLSFiles{CA: write("ca.pem", "CERTIFICATE", a.cert.Raw), Cert: write("cert.pem", "CERTIFICATE", der), Key: write("key.pem", "PRIVATE KEY", keyDER)}
}

// greet sends a word to the server and returns what it got.
func greet(t *testing.T, l net.Listener, c *tls.Config) error {
	t.Helper()
	conn, err := tls.Dial("tcp", l.Addr().String(), c)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("hello")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 5))
	return err
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	ours, theirs := newAuthority(t), newAuthority(t)
	secure, err := ours.issue("server").Config()
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("tcp://0.0.0.0:0", secure)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
	client := func(a *authority) *tls.Config {
		c := &tls.Config{ServerName: "server", RootCAs: x509.NewCertPool()}
		c.RootCAs.AddCert(ours.cert)
		if a != nil {
			f := a.issue("client")
			cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
			if err != nil {
				t.Fatal(err)
			}
			// Unasked, as a liar would.
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		}
		return c
	}
	if err := greet(t, l, client(ours)); err != nil {
		t.Errorf("a client of our authority: %v", err)
	}
	if err := greet(t, l, client(theirs)); err == nil {
		t.Error("a client of another authority was served")
	}
	if err := greet(t, l, client(nil)); err == nil {
		t.Error("a client without a certificate was served")
	}
}

func TestTLSFiles(t *testing.T) {
	t.Parallel()
	f := newAuthority(t).issue("server")
	if c, err := (TLSFiles{}).Config(); c != nil || err != nil {
		t.Errorf("no files: %v, %v", c, err)
	}
	for name, bad := range map[string]TLSFiles{
		"no key":          {CA: f.CA, Cert: f.Cert},
		"no certificate":  {CA: f.CA, Key: f.Key},
		"authority alone": {CA: f.CA},
		"missing file":    {Cert: f.Cert + "x", Key: f.Key},
		"key as CA":       {CA: f.Key, Cert: f.Cert, Key: f.Key},
	} {
		if _, err := bad.Config(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestInherited starts this test again as systemd would start a service.
func TestInherited(t *testing.T) {
	if os.Getenv("STRAKE_TEST_INHERITED") != "" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // systemd knows it before it starts us
		l, err := Inherited("fd://", os.Getenv, nil)
		if err != nil || len(l) != 1 {
			t.Fatalf("%d listeners, %v", len(l), err)
		}
		c, err := l[0].Accept()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte("served")); err != nil {
			t.Fatal(err)
		}
		c.Close()
		return
	}
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer l.Close()
	var out bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run=^TestInherited$")
	cmd.Env = append(os.Environ(), "STRAKE_TEST_INHERITED=1", "LISTEN_FDS=1")
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{f}, &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if werr := cmd.Wait(); werr != nil || err != nil {
		t.Fatalf("%v, %v\n%s", err, werr, out.Bytes())
	}
	if string(got) != "served" {
		t.Errorf("got %q", got)
	}
}

func TestInheritedNothing(t *testing.T) {
	t.Parallel()
	me := strconv.Itoa(os.Getpid())
	for _, c := range []struct{ addr, pid, fds, want string }{
		{"fd://", "", "", "no sockets"},
		{"fd://", "1", "1", "for process 1"},
		{"fd://", me, "0", "no sockets"},
		{"fd://", me, "x", "no sockets"},
		{"fd://2", me, "1", "descriptors 3 to 3"},
		{"fd://9", me, "2", "descriptors 3 to 4"},
	} {
		_, err := Inherited(c.addr, func(k string) string {
			return map[string]string{"LISTEN_PID": c.pid, "LISTEN_FDS": c.fds}[k]
		}, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestNotify(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := Notify(func(string) string { return path }, "READY=1"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 32)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
	if err := Notify(func(string) string { return "" }, "READY=1"); err != nil {
		t.Error(err)
	}
}
