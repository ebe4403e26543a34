package network

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// devicePrefix begins the names of the host's ends of sandboxes' interfaces.
// Four hex digits follow: the last two bytes of the address.
const devicePrefix = "strk"

// The candidates for the /16 network that addresses are taken of, in the order
// in which they are tried. Docker and Podman begin at the other ends.
var candidates = func() []netip.Prefix {
	var list []netip.Prefix
	for b := byte(197); b < 230; b++ {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, b, 0, 0}), 16))
	}
	for b := byte(31); b >= 16; b-- {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, b, 0, 0}), 16))
	}
	return list
}()

// routed connects namespaces by virtual Ethernet devices and lets the host
// route.
type routed struct {
	subnet netip.Prefix
	mtu    int

	mu   sync.Mutex
	host *netlink.Handle
}

// newRouted readies the host.
func newRouted() (_ *routed, err error) {
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	r := &routed{host: host}
	defer func() {
		if err != nil {
			host.Close()
		}
	}()
	if err := r.look(); err != nil {
		return nil, err
	}
	if err := enableForwarding(); err != nil {
		return nil, err
	}
	return r, r.ensureRules()
}

// look finds a free network and the MTU of the way out.
func (r *routed) look() error {
	routes, err := r.host.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	links, err := r.host.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	byIndex := make(map[int]*netlink.LinkAttrs)
	for _, l := range links {
		byIndex[l.Attrs().Index] = l.Attrs()
	}
	r.mtu = 1500
	var taken []netip.Prefix
	for _, route := range routes {
		attrs := byIndex[route.LinkIndex]
		if attrs != nil && strings.HasPrefix(attrs.Name, devicePrefix) {
			continue
		}
		dst, ok := prefix(route.Dst)
		if !ok || dst.Bits() == 0 {
			if attrs != nil && attrs.MTU > 0 && route.Table == unix.RT_TABLE_MAIN {
				r.mtu = attrs.MTU
			}
			continue
		}
		taken = append(taken, dst)
	}
	if conf, err := hostResolvers(); err == nil {
		for _, s := range conf.servers {
			taken = append(taken, netip.PrefixFrom(s.WithZone("").Unmap(), s.Unmap().BitLen()))
		}
	}
	r.subnet, err = freeSubnet(taken)
	return err
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}

func freeSubnet(taken []netip.Prefix) (netip.Prefix, error) {
candidate:
	for _, c := range candidates {
		for _, t := range taken {
			if c.Overlaps(t) {
				continue candidate
			}
		}
		return c, nil
	}
	return netip.Prefix{}, errors.New("no private network is free for sandboxes: the host has routes to all that were tried (10.197.0.0/16 to 10.229.0.0/16, 172.16.0.0/12)")
}

func enableForwarding() error {
	const path = "/proc/sys/net/ipv4/ip_forward"
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(b)) != "0" {
		return nil
	}
	return os.WriteFile(path, []byte("1"), 0)
}

// ensureRules is called for every sandbox: firewalls that are loaded anew remove
// what is not theirs.
func (r *routed) ensureRules() error {
	added, err := addRules(r.subnet.Addr())
	if err != nil || !added {
		return err
	}
	// Other firewalls have forms that we can't know. What is not understood
	// is left as it is.
	_ = passOtherFirewalls()
	return nil
}

func (r *routed) connect(ns *os.File) (connection, error) {
	if err := r.ensureRules(); err != nil {
		return connection{}, err
	}
	ip, index, err := r.addDevice(ns)
	return connection{
		ip:      ip,
		gateway: r.gateway(),
		ready:   func() error { return waitForCarrier(r.host, index) },
		// The device goes with the namespace.
		close: func() error { return nil },
	}, err
}

func (r *routed) gateway() netip.Addr { return r.subnet.Addr().Next() }

// hostMAC is the hardware address of all the host's ends. Each is alone on its
// link with a sandbox.
var hostMAC = net.HardwareAddr{0x02, 's', 't', 'r', 'k', 0x01}

// sandboxMAC is made of the address, so that an address that is used again has
// the same one.
func sandboxMAC(ip netip.Addr) net.HardwareAddr {
	b := ip.As4()
	return net.HardwareAddr{0x02, 's', b[0], b[1], b[2], b[3]}
}

// addDevice makes eth0 in ns, its other end on the host, and the host's route to
// it. It returns the address that eth0 is to have and the index of the other end.
func (r *routed) addDevice(ns *os.File) (ip netip.Addr, index int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var host *netlink.Veth
	for try := 0; ; try++ {
		base := r.subnet.Addr().As4()
		base[2], base[3] = byte(rand.Uint32()), byte(1+rand.Uint32N(254))
		ip = netip.AddrFrom4(base)
		if ip == r.gateway() {
			continue
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("%s%02x%02x", devicePrefix, base[2], base[3])
		attrs.MTU = r.mtu
		attrs.HardwareAddr = hostMAC
		attrs.Flags = net.FlagUp
		host = &netlink.Veth{
			LinkAttrs:        attrs,
			PeerName:         "eth0",
			PeerMTU:          uint32(r.mtu),
			PeerHardwareAddr: sandboxMAC(ip),
			PeerNamespace:    netlink.NsFd(ns.Fd()),
		}
		err := r.host.LinkAdd(host)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EEXIST) || try == 100 {
			return netip.Addr{}, 0, fmt.Errorf("make network device %s: %w", attrs.Name, err)
		}
	}
	// Best effort: the rules drop what does not come from the network at all.
	_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+host.Name+"/rp_filter", []byte("1"), 0)
	neigh := &netlink.Neigh{
		LinkIndex: host.Index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: ip.AsSlice(), HardwareAddr: sandboxMAC(ip),
	}
	if err := r.host.NeighAdd(neigh); err != nil {
		return netip.Addr{}, 0, fmt.Errorf("add neighbour %s: %w", ip, err)
	}
	route := &netlink.Route{LinkIndex: host.Index, Scope: netlink.SCOPE_LINK, Dst: single(ip)}
	if err := r.host.RouteAdd(route); err != nil {
		return netip.Addr{}, 0, fmt.Errorf("add route to %s: %w", ip, err)
	}
	return ip, host.Index, nil
}

func (r *routed) close() error {
	r.host.Close()
	return nil
}

func single(ip netip.Addr) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// configureSandbox readies the interfaces of the namespace that this thread is
// in. Nothing needs to be asked for the gateway's hardware address.
func configureSandbox(ip, gateway netip.Addr) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	eth0, err := h.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := h.AddrAdd(eth0, &netlink.Addr{IPNet: single(ip)}); err != nil {
		return fmt.Errorf("add address %s: %w", ip, err)
	}
	if err := h.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	index := eth0.Attrs().Index
	neigh := &netlink.Neigh{
		LinkIndex: index, Family: netlink.FAMILY_V4, State: netlink.NUD_PERMANENT,
		IP: gateway.AsSlice(), HardwareAddr: hostMAC,
	}
	if err := h.NeighAdd(neigh); err != nil {
		return fmt.Errorf("add neighbour %s: %w", gateway, err)
	}
	route := &netlink.Route{LinkIndex: index, Gw: gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := h.RouteAdd(route); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

// waitForCarrier waits until a device that was set up before its other end sends
// packets. The kernel does its part when it finds time; until then packets are
// lost, and a lost SYN costs the sandbox a second.
func waitForCarrier(h *netlink.Handle, index int) error {
	wait := 50 * time.Microsecond
	for {
		l, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("wait for network device: %w", err)
		}
		if l.Attrs().OperState == netlink.OperUp || wait > time.Second {
			return nil
		}
		time.Sleep(wait)
		wait *= 2
	}
}
