package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Tests run in a child process with a network namespace of its own, which is
// "the host". A second one is "the internet": it has a route to the host's
// address, and none to sandboxes.
//
//	sandbox ── host ── internet
//	           198.51.100.2   198.51.100.1, 203.0.113.5, 203.0.113.53
const (
	hostAddr     = "198.51.100.2"
	routerAddr   = "198.51.100.1"
	internetAddr = "203.0.113.5"
	resolverAddr = "203.0.113.53"

	childVar = "STRAKE_NETWORK_TEST"
)

type hostKind int

const (
	rootful hostKind = iota
	rootless
	// guest is a process that is root, but not in a network namespace of its
	// own, and has no rights in the one it is in.
	guest
)

func (k hostKind) String() string { return [...]string{"rootful", "rootless", "guest"}[k] }

// onTestHost runs the test again in a child process on a host of its own, and
// reports whether this is the child.
func onTestHost(t *testing.T, kind hostKind) bool {
	t.Helper()
	if os.Getenv(childVar) == kind.String() {
		if kind != guest {
			setUpHost(t)
		}
		return true
	}
	if os.Getenv(childVar) != "" {
		return false
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	name := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run="+name, "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), childVar+"="+kind.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if kind != rootful || os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	if kind == guest {
		cmd.SysProcAttr.Cloneflags &^= syscall.CLONE_NEWNET
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("SKIPPED: no network or user namespaces here: %v", err)
	}
	if err != nil {
		t.Fatalf("on the test host: %v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) && !bytes.Contains(out, []byte("--- SKIP: ")) {
		t.Fatalf("the child did not run the test:\n%s", out)
	}
	if bytes.Contains(out, []byte("--- SKIP: ")) {
		t.Skipf("on the test host:\n%s", out)
	}
	t.Logf("on the test host:\n%s", out)
	return false
}

// forBoth runs the test on a rootful and a rootless host.
func forBoth(t *testing.T, test func(t *testing.T, n *Network)) {
	for _, kind := range []hostKind{rootful, rootless} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			if onTestHost(t, kind) {
				test(t, testNetwork(t, kind))
			}
		})
	}
}

var internet *os.File

func setUpHost(t *testing.T) {
	t.Helper()
	host, err := netlink.NewHandle()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	ns, err := newNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	internet = ns
	err = inNetNS(ns, func() error {
		up := netlink.NewLinkAttrs()
		up.Name = "up0"
		up.MTU = 1400
		if err := host.LinkAdd(&netlink.Veth{LinkAttrs: up, PeerName: "in0", PeerNamespace: netlink.NsFd(ns.Fd())}); err != nil {
			return err
		}
		in, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer in.Close()
		for _, a := range []struct {
			h          *netlink.Handle
			link, addr string
		}{
			{host, "lo", ""}, {host, "up0", hostAddr + "/24"},
			{in, "lo", internetAddr + "/32"}, {in, "lo", resolverAddr + "/32"}, {in, "in0", routerAddr + "/24"},
		} {
			l, err := a.h.LinkByName(a.link)
			if err != nil {
				return err
			}
			if a.addr != "" {
				addr, err := netlink.ParseAddr(a.addr)
				if err != nil {
					return err
				}
				if err := a.h.AddrAdd(l, addr); err != nil {
					return err
				}
			}
			if err := a.h.LinkSetUp(l); err != nil {
				return err
			}
		}
		l, err := host.LinkByName("up0")
		if err != nil {
			return err
		}
		return host.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(routerAddr)})
	})
	if err != nil {
		t.Fatal("set up the test host:", err)
	}
	in(t, internet, func() error {
		serveTCP(t, "203.0.113.5:80")
		serveUDP(t, "203.0.113.5:9000")
		serveNames(t, resolverAddr, "internet")
		return nil
	})
}

func in(t testing.TB, ns *os.File, fn func() error) {
	t.Helper()
	if err := inNetNS(ns, fn); err != nil {
		t.Error(err)
	}
}

// serveTCP says whom it talks to, then echoes.
func serveTCP(t testing.TB, addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "hello %s\n", host)
				io.Copy(c, c)
			}()
		}
	}()
}

func serveUDP(t testing.TB, addr string) {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	}()
}

// serveNames answers questions for the TXT records of <what>.test: many, so that
// UDP has no room, for "large.test".
func serveNames(t testing.TB, addr, who string) {
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		txt := func(s string) {
			m.Answer = append(m.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{s}})
		}
		switch q.Question[0].Name {
		case "who.test.":
			txt(who)
		case "large.test.":
			if w.RemoteAddr().Network() == "udp" {
				m.Truncated = true
				break
			}
			for range 100 {
				txt(strings.Repeat("x", 200))
			}
		case "broken.test.":
			m.Rcode = dns.RcodeServerFailure
		default:
			m.Rcode = dns.RcodeNameError
		}
		w.WriteMsg(m)
	})
	pc, err := net.ListenPacket("udp", addr+":53")
	if err != nil {
		t.Error(err)
		return
	}
	l, err := net.Listen("tcp", addr+":53")
	if err != nil {
		t.Error(err)
		return
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
}

func testNetwork(t testing.TB, kind hostKind, servers ...string) *Network {
	t.Helper()
	n, err := New(Options{StateDir: t.TempDir(), Rootless: kind == rootless})
	if err != nil {
		t.Fatal(err)
	}
	if len(servers) == 0 {
		servers = []string{resolverAddr}
	}
	var conf resolvConf
	for _, s := range servers {
		conf.servers = append(conf.servers, netip.MustParseAddr(s))
	}
	n.resolvers = func() (resolvConf, error) { return conf, nil }
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func connect(t testing.TB, n *Network) *Endpoint {
	t.Helper()
	e, err := n.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// dial makes a connection from the sandbox.
func dial(e *Endpoint, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := inNetNS(e.NetNS, func() (err error) {
		c, err = net.DialTimeout(network, addr, 5*time.Second)
		return err
	})
	return c, err
}

// greeting connects to a server made by serveTCP and returns what it says.
func greeting(e *Endpoint, addr string) (string, error) {
	c, err := dial(e, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	return string(buf[:n]), err
}

func TestReachesTheOutside(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		e := connect(t, n)
		got, err := greeting(e, internetAddr+":80")
		if want := "hello " + hostAddr + "\n"; got != want || err != nil {
			t.Errorf("the internet says %q, %v, want %q", got, err, want)
		}

		c, err := dial(e, "udp", internetAddr+":9000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(5 * time.Second))
		for _, size := range []int{1, 1300} {
			want := bytes.Repeat([]byte("u"), size)
			c.Write(want)
			buf := make([]byte, 65535)
			n, err := c.Read(buf)
			if !bytes.Equal(buf[:n], want) || err != nil {
				t.Errorf("UDP: %d of %d bytes come back, %v", n, size, err)
			}
		}

		if _, err := dial(e, "tcp", internetAddr+":81"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("a port where nobody listens: got %v, want connection refused", err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if err := e.Close(); err != nil {
			t.Error("second Close:", err)
		}
	})
}

// Much data goes both ways unharmed, and the end of one direction is told while
// the other goes on.
func TestCarriesStreams(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		e := connect(t, n)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				c, err := dial(e, "tcp", internetAddr+":80")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(60 * time.Second))
				want := bytes.Repeat([]byte(fmt.Sprintf("stream %d,", i)), 500_000)
				go func() {
					c.Write(want)
					c.(*net.TCPConn).CloseWrite()
				}()
				got, err := io.ReadAll(c)
				if err != nil {
					t.Error(err)
				}
				_, got, _ = bytes.Cut(got, []byte("\n"))
				if !bytes.Equal(got, want) {
					t.Errorf("stream %d: %d bytes came back of %d, or others", i, len(got), len(want))
				}
			})
		}
		wg.Wait()
	})
}

func TestResolvesNames(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		serveNames(t, "127.0.0.53", "loopback") // like systemd-resolved
		ask := func(e *Endpoint, network, name string) (string, error) {
			var answer *dns.Msg
			err := inNetNS(e.NetNS, func() (err error) {
				c := dns.Client{Net: network, Timeout: 8 * time.Second}
				m := new(dns.Msg)
				m.SetQuestion(name, dns.TypeTXT)
				answer, _, err = c.Exchange(m, "127.0.0.11:53")
				return err
			})
			if err != nil {
				return "", err
			}
			if answer.Rcode != dns.RcodeSuccess {
				return dns.RcodeToString[answer.Rcode], nil
			}
			if answer.Truncated {
				return "truncated", nil
			}
			var b strings.Builder
			for _, rr := range answer.Answer {
				b.WriteString(strings.Join(rr.(*dns.TXT).Txt, ""))
			}
			return b.String(), nil
		}
		for _, c := range []struct {
			name          string
			servers       []string
			network, host string
			want          string
		}{
			{"resolver outside", []string{resolverAddr}, "udp", "who.test.", "internet"},
			{"by TCP", []string{resolverAddr}, "tcp", "who.test.", "internet"},
			{"loopback resolver", []string{"127.0.0.53"}, "udp", "who.test.", "loopback"},
			{"no such name", []string{resolverAddr}, "udp", "nobody.test.", "NXDOMAIN"},
			{"truncated", []string{resolverAddr}, "udp", "large.test.", "truncated"},
			{"large", []string{resolverAddr}, "tcp", "large.test.", strings.Repeat("x", 20000)},
			{"first resolver refuses connections", []string{"127.0.0.54", "127.0.0.53"}, "udp", "who.test.", "loopback"},
			{"first resolver is silent", []string{"198.51.100.99", "127.0.0.53"}, "udp", "who.test.", "loopback"},
			{"no resolver answers", []string{"127.0.0.54", "127.0.0.55"}, "udp", "who.test.", "SERVFAIL"},
			{"resolver fails", []string{resolverAddr, "127.0.0.53"}, "udp", "broken.test.", "SERVFAIL"},
		} {
			t.Run(c.name, func(t *testing.T) {
				n := testNetwork(t, map[bool]hostKind{true: rootless}[n.rootless], c.servers...)
				e := connect(t, n)
				got, err := ask(e, c.network, c.host)
				if got != c.want || err != nil {
					t.Errorf("got %.30q, %v, want %.30q", got, err, c.want)
				}
				if got, want := string(e.ResolvConf), "nameserver 127.0.0.11\n"; got != want {
					t.Errorf("resolv.conf is %q, want %q", got, want)
				}
			})
		}
	})
}

func TestIsolation(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		serveTCP(t, "127.0.0.1:7000")
		serveTCP(t, "0.0.0.0:7001")
		a, b := connect(t, n), connect(t, n)
		in(t, b.NetNS, func() error {
			serveTCP(t, "0.0.0.0:7002")
			return nil
		})
		if got, err := greeting(b, "127.0.0.1:7002"); err != nil || got == "" {
			t.Errorf("own loopback: %q, %v", got, err)
		}
		gateway := userGateway.String()
		if r, ok := n.link.(*routed); ok {
			gateway = r.gateway().String()
			if a.IP == b.IP {
				t.Errorf("both have the address %s", a.IP)
			}
		}
		refused := []string{"127.0.0.1:7000", "127.0.0.1:7001", "127.0.0.1:7002", "127.8.8.8:7001", "0.0.0.0:7001", gateway + ":7001", gateway + ":53"}
		if a.IP != b.IP {
			refused = append(refused, b.IP+":7002")
		}
		for _, addr := range refused {
			t.Run(addr, func(t *testing.T) {
				t.Parallel()
				if got, err := greeting(a, addr); err == nil {
					t.Errorf("a sandbox reaches %s, which says %q", addr, got)
				}
			})
		}
		// From outside: the internet uses the host as its way to the sandbox.
		if _, ok := n.link.(*routed); !ok {
			return
		}
		in(t, internet, func() error {
			h, err := netlink.NewHandle()
			if err != nil {
				return err
			}
			defer h.Close()
			err = h.RouteAdd(&netlink.Route{Dst: single(netip.MustParseAddr(b.IP)), Gw: net.ParseIP(hostAddr)})
			if err != nil {
				return err
			}
			if c, err := net.DialTimeout("tcp", b.IP+":7002", time.Second); err == nil {
				c.Close()
				t.Error("the outside reaches a sandbox")
			}
			return nil
		})
	})
}

func TestSandboxDevices(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		e := connect(t, n)
		in(t, e.NetNS, func() error {
			links, err := net.Interfaces()
			if err != nil {
				return err
			}
			var names []string
			for _, l := range links {
				if l.Flags&net.FlagUp != 0 {
					names = append(names, fmt.Sprintf("%s %d", l.Name, l.MTU))
				}
			}
			want := "lo 65536, eth0 1400" // the MTU of the way out
			if n.rootless {
				want = "lo 65536, eth0 65520"
			}
			if got := strings.Join(names, ", "); got != want {
				t.Errorf("interfaces are %q, want %q", got, want)
			}
			return nil
		})
	})
}

// openSockets counts the process's sockets and network namespaces.
func openSockets(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, "net:")) {
			n++
		}
	}
	return n
}

func TestNetworkClose(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		before := openSockets(t)
		e := connect(t, n)
		connect(t, n)
		c, err := dial(e, "tcp", internetAddr+":80")
		if err != nil {
			t.Fatal(err)
		}
		var hello [5]byte
		if _, err := io.ReadFull(c, hello[:]); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		c.Close()
		// The server of the test may take a moment to close its end.
		for try := 0; openSockets(t) > before && try < 1000; try++ {
			time.Sleep(time.Millisecond)
		}
		if after := openSockets(t); after > before {
			t.Errorf("%d sockets and namespaces are open, %d before", after, before)
		}
		if _, err := n.Connect(t.Context()); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Connect after Close: got %v, want %v", err, os.ErrClosed)
		}
		if err := errors.Join(e.Close(), n.Close()); err != nil {
			t.Error(err)
		}

		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("why")
		cancel(why)
		if _, err := testNetwork(t, rootful).Connect(ctx); err != why {
			t.Errorf("Connect with a context that has ended: got %v, want %v", err, why)
		}
	})
}
