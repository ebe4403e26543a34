package network

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestResolvConf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		in      string
		servers []string
		out     string
	}{
		{"empty", "", []string{"127.0.0.1"}, "nameserver 127.0.0.11\n"},
		{"usual", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n", []string{"192.0.2.1", "192.0.2.2"}, "nameserver 127.0.0.11\n"},
		{
			"systemd-resolved", "# a comment\n; another\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n",
			[]string{"127.0.0.53"},
			"nameserver 127.0.0.11\nsearch example.org\noptions edns0\n",
		},
		{
			"Kubernetes", "search a.svc b\nnameserver 10.96.0.10\noptions ndots:5 rotate",
			[]string{"10.96.0.10"},
			"nameserver 127.0.0.11\nsearch a.svc b\noptions ndots:5\n",
		},
		{"last search counts, domain is one", "search a\ndomain b\nnameserver ::1", []string{"::1"}, "nameserver 127.0.0.11\nsearch b\n"},
		{"no search", "search .\nnameserver fe80::1%eth0", []string{"fe80::1%eth0"}, "nameserver 127.0.0.11\n"},
		{"three at most", "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4", []string{"1.1.1.1", "1.1.1.2", "1.1.1.3"}, "nameserver 127.0.0.11\n"},
		{"nonsense", "nameserver\nnameserver here\n\x00\xff\noptions\nsortlist 1.2.3.4", []string{"127.0.0.1"}, "nameserver 127.0.0.11\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conf := parseResolvConf([]byte(c.in))
			var servers []string
			for _, s := range conf.servers {
				servers = append(servers, s.String())
			}
			if diff := cmp.Diff(c.servers, servers); diff != "" {
				t.Errorf("servers (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.out, string(conf.forSandbox())); diff != "" {
				t.Errorf("for the sandbox (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHostResolvConf(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile(resolvConfPath)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	got, err := HostResolvConf()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n"))
	f.Add([]byte("nameserver fe80::1%\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		conf := parseResolvConf(b)
		if len(conf.servers) == 0 || len(conf.servers) > 3 {
			t.Fatalf("%d servers", len(conf.servers))
		}
		// What a sandbox gets says the same when it is read.
		again := parseResolvConf(conf.forSandbox())
		if got := again.forSandbox(); !bytes.Equal(got, conf.forSandbox()) {
			t.Errorf("%q is read as %q", conf.forSandbox(), got)
		}
	})
}
