package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// TestMain lets the test program be another process that uses a network:
// "network-test-process", then how many endpoints to open.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "network-test-process" {
		count, _ := strconv.Atoi(os.Args[2])
		if err := process(count); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// process opens endpoints, prints their addresses and waits for the end of its
// input.
func process(count int) error {
	n, err := New(Options{})
	if err != nil {
		return err
	}
	n.resolvers = func() (resolvConf, error) { return parseResolvConf([]byte("nameserver " + resolverAddr)), nil }
	for range count {
		e, err := n.Connect(context.Background())
		if err != nil {
			return err
		}
		got, err := greeting(e, internetAddr+":80")
		if err != nil || got != "hello "+hostAddr+"\n" {
			return fmt.Errorf("the internet says %q, %v", got, err)
		}
		fmt.Println(e.IP)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	return n.Close()
}

type otherProcess struct {
	cmd *exec.Cmd
	in  io.Closer
	ips []string
}

func startProcess(t *testing.T, endpoints int) *otherProcess {
	t.Helper()
	p := &otherProcess{cmd: exec.CommandContext(t.Context(), os.Args[0], "network-test-process", strconv.Itoa(endpoints))}
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		p.ips = append(p.ips, lines.Text())
	}
	if len(p.ips) != endpoints {
		t.Fatalf("process has the addresses %q, want %d", p.ips, endpoints)
	}
	return p
}

// waitForNoDevices waits until the kernel has removed all our devices of the
// host, and fails after a while.
func waitForNoDevices(t *testing.T) {
	t.Helper()
	var names []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		names = nil
		links, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if strings.HasPrefix(l.Name, devicePrefix) {
				names = append(names, l.Name)
			}
		}
		if len(names) == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("devices %q are left", names)
}

// Several processes share the host's network without knowing of each other, and
// leave nothing there when they end or are killed.
func TestProcesses(t *testing.T) {
	t.Parallel()
	if !onTestHost(t, rootful) {
		return
	}
	const each = 5
	n := testNetwork(t, rootful)
	own := connect(t, n)
	a, b := startProcess(t, each), startProcess(t, each)
	ips := slices.Sorted(slices.Values(slices.Concat(a.ips, b.ips, []string{own.IP})))
	if len(slices.Compact(ips)) != 2*each+1 {
		t.Errorf("an address was given out twice: %q", ips)
	}

	a.cmd.Process.Kill()
	a.cmd.Wait()
	b.in.Close()
	if err := b.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got, err := greeting(own, internetAddr+":80"); err != nil {
		t.Errorf("after the others have ended: %q, %v", got, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	waitForNoDevices(t)
}

// A firewall that is loaded anew takes our rules away.
func TestRulesComeBack(t *testing.T) {
	t.Parallel()
	if !onTestHost(t, rootful) {
		return
	}
	n := testNetwork(t, rootful)
	connect(t, n)
	n.wg.Wait() // the spare is made
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushRuleset()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	connect(t, n) // the spare
	if got, err := greeting(connect(t, n), internetAddr+":80"); err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRevisionNamesTheRules(t *testing.T) {
	t.Parallel()
	if !onTestHost(t, rootful) {
		return
	}
	subnet := netip.MustParseAddr("10.197.0.0")
	for i, want := range []bool{true, false} {
		if added, err := addRules(subnet); added != want || err != nil {
			t.Errorf("call %d: added is %v, %v, want %v", i, added, err, want)
		}
	}
	if added, err := addRules(netip.MustParseAddr("10.198.0.0")); !added || err != nil {
		t.Errorf("another subnet: added is %v, %v", added, err)
	}
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("SKIPPED: the program nft is not installed")
	}
	out, err := exec.Command(nft, "--stateless", "list", "table", "inet", "strake").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	golden := filepath.Join("testdata", "rules.nft")
	if os.Getenv("UPDATE") != "" {
		if err := os.WriteFile(golden, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != string(want) {
		t.Errorf("rules are\n%s\nwant (and another revision)\n%s", out, want)
	}
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// Docker and ufw drop what is forwarded unless a rule of theirs accepts it.
func TestPassesOtherFirewalls(t *testing.T) {
	t.Parallel()
	for _, chain := range []string{"DOCKER-USER", "FORWARD"} {
		t.Run(chain, func(t *testing.T) {
			t.Parallel()
			if !onTestHost(t, rootful) {
				return
			}
			c, err := nftables.New()
			if err != nil {
				t.Fatal(err)
			}
			drop := nftables.ChainPolicyDrop
			table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"})
			forward := c.AddChain(&nftables.Chain{
				Table: table, Name: "FORWARD", Policy: &drop,
				Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
			})
			user := forward
			if chain == "DOCKER-USER" {
				user = c.AddChain(&nftables.Chain{Table: table, Name: chain})
				c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: jump(chain)})
			}
			if err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			for range 2 { // processes
				if got, err := greeting(connect(t, testNetwork(t, rootful)), internetAddr+":80"); err != nil {
					t.Errorf("%q, %v", got, err)
				}
				if err := passOtherFirewalls(); err != nil {
					t.Error(err)
				}
			}
			rules, err := c.GetRules(table, user)
			if err != nil || len(rules) != 2 {
				t.Errorf("%s has %d rules, %v, want 2", chain, len(rules), err)
			}
		})
	}
}

// A sandbox that sends from an address that is not its own is not heard.
func TestSpoofing(t *testing.T) {
	t.Parallel()
	if !onTestHost(t, rootful) {
		return
	}
	heard := make(chan string, 10)
	in(t, internet, func() error {
		c, err := net.ListenPacket("udp", internetAddr+":9001")
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				n, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				heard <- string(buf[:n])
			}
		}()
		return nil
	})
	n := testNetwork(t, rootful)
	e, other := connect(t, n), connect(t, n)
	in(t, e.NetNS, func() error {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, ip := range []string{"192.0.2.77", other.IP, e.IP} {
			if ip != e.IP {
				if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: single(netip.MustParseAddr(ip))}); err != nil {
					return err
				}
			}
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}
			c, err := d.Dial("udp", internetAddr+":9001")
			if err != nil {
				return err
			}
			fmt.Fprint(c, "from "+ip)
			c.Close()
		}
		return nil
	})
	select {
	case got := <-heard:
		if got != "from "+e.IP {
			t.Errorf("heard %q first, want what came from %s", got, e.IP)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was heard")
	}
}

// Root in a container may have no say in the network it is in.
func TestGuestUsesItsOwnStack(t *testing.T) {
	t.Parallel()
	if !onTestHost(t, guest) {
		return
	}
	n := testNetwork(t, guest)
	e := connect(t, n)
	if _, ok := n.link.(*userMode); !ok || e.IP != userIP.String() {
		t.Errorf("link is %T, address %s, want the stack in this process", n.link, e.IP)
	}
}

func TestFreeSubnet(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		taken string
		want  string // empty: an error
	}{
		{"nothing taken", "", "10.197.0.0/16"},
		{"others", "192.168.0.0/16 172.17.0.0/16 fd00::/8", "10.197.0.0/16"},
		{"a host in the first", "10.197.200.1/32", "10.198.0.0/16"},
		{"a part of two", "10.197.128.0/17 10.198.0.0/24", "10.199.0.0/16"},
		{"all of 10", "10.0.0.0/8", "172.31.0.0/16"},
		{"all of 10, half of 172", "10.0.0.0/8 172.24.0.0/13", "172.23.0.0/16"},
		{"all", "0.0.0.0/1 128.0.0.0/1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var taken []netip.Prefix
			for _, p := range strings.Fields(c.taken) {
				taken = append(taken, netip.MustParsePrefix(p))
			}
			got, err := freeSubnet(taken)
			if c.want == "" {
				if err == nil {
					t.Errorf("got %s, want an error", got)
				}
				return
			}
			if err != nil || got.String() != c.want {
				t.Errorf("got %s, %v, want %s", got, err, c.want)
			}
		})
	}
}

// The host's routes and resolvers are kept clear of.
func TestSubnetAvoidsTheHosts(t *testing.T) {
	t.Parallel()
	if !onTestHost(t, rootful) {
		return
	}
	up0, err := netlink.LinkByName("up0")
	if err != nil {
		t.Fatal(err)
	}
	_, vpn, err := net.ParseCIDR("10.197.64.0/18")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: up0.Attrs().Index, Dst: vpn, Table: 77}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second must not mind the first one's devices
		e := connect(t, testNetwork(t, rootful))
		if !strings.HasPrefix(e.IP, "10.198.") {
			t.Errorf("address is %s, want one of 10.198.0.0/16", e.IP)
		}
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); string(b) != "1\n" || err != nil {
		t.Errorf("ip_forward is %q, %v", b, err)
	}
}

func TestManyAtOnce(t *testing.T) {
	forBoth(t, func(t *testing.T, n *Network) {
		errs := make(chan error)
		const count = 20
		for range count {
			go func() {
				errs <- func() error {
					e, err := n.Connect(t.Context())
					if err != nil {
						return err
					}
					_, err = greeting(e, internetAddr+":80")
					return errors.Join(err, e.Close())
				}()
			}()
		}
		for range count {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
}

func BenchmarkConnect(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("SKIPPED: needs root")
	}
	for _, kind := range []hostKind{rootless} {
		b.Run(kind.String(), func(b *testing.B) {
			n := testNetwork(b, kind)
			for b.Loop() {
				if err := connect(b, n).Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
