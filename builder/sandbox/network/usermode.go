package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// As large as an IP packet can be: nothing but the sandbox's own device
	// sees packets of this size.
	userMTU = 65520
	// So many connections a sandbox may have at once; it is refused more.
	userConns   = 1024
	dialTimeout = 30 * time.Second
	// A UDP flow ends after so much silence.
	udpIdle = 90 * time.Second
)

var (
	userIP      = netip.AddrFrom4([4]byte{10, 0, 2, 100})
	userGateway = netip.AddrFrom4([4]byte{10, 0, 2, 2})
)

// userMode connects each namespace to a TCP/IP stack in this process. Packets
// come and go by a packet socket at the other end of eth0. That end is in a
// namespace of the Network's own: the host's is not ours.
//
// A tap device would do as well, but /dev/net/tun is often not there, or not
// for everybody.
type userMode struct {
	ns *os.File // where the other ends are
	mu sync.Mutex
	h  *netlink.Handle // in ns
	n  int             // devices made
}

func newUserMode() (*userMode, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	u := &userMode{ns: ns}
	err = inNetNS(ns, func() (err error) {
		u.h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink: %w", err), ns.Close())
	}
	return u, nil
}

func (u *userMode) close() error {
	u.h.Close()
	return u.ns.Close()
}

func (u *userMode) connect(ns *os.File) (connection, error) {
	fd, index, err := u.addDevice(ns)
	if err != nil {
		return connection{}, err
	}
	s, err := newUserStack(os.NewFile(uintptr(fd), "packets"))
	if err != nil {
		return connection{}, err
	}
	return connection{
		ip:      userIP,
		gateway: userGateway,
		ready:   func() error { return waitForCarrier(u.h, index) },
		close:   s.close,
	}, nil
}

// addDevice makes eth0 in ns and returns a packet socket at its other end, and
// the other end's index.
func (u *userMode) addDevice(ns *os.File) (fd, index int, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.n++
	attrs := netlink.NewLinkAttrs()
	attrs.Name = fmt.Sprintf("%s%d", devicePrefix, u.n)
	attrs.MTU = userMTU
	attrs.HardwareAddr = hostMAC
	attrs.Flags = net.FlagUp
	dev := &netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         "eth0",
		PeerMTU:          userMTU,
		PeerHardwareAddr: sandboxMAC(userIP),
		PeerNamespace:    netlink.NsFd(ns.Fd()),
	}
	if err := u.h.LinkAdd(dev); err != nil {
		return -1, 0, fmt.Errorf("make network device: %w", err)
	}
	fd, err = packetSocket(u.ns, dev.Index)
	return fd, dev.Index, err
}

// packetSocket opens a packet socket in ns, bound to the device of this index.
func packetSocket(ns *os.File, index int) (fd int, err error) {
	err = inNetNS(ns, func() error {
		// Protocol 0 receives nothing before it is bound: not what other
		// sandboxes send.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
			unix.Close(fd)
			return fmt.Errorf("bind packet socket: %w", err)
		}
		return nil
	})
	return fd, err
}

// userStack is the stack of one sandbox.
type userStack struct {
	stack   *stack.Stack
	link    *channel.Endpoint
	packets *os.File
	ctx     context.Context // ended by close, for all connections
	cancel  context.CancelFunc

	mu    sync.Mutex
	conns int
	wg    sync.WaitGroup
}

const nic = 1

// newUserStack starts a stack that owns the packet socket.
func newUserStack(packets *os.File) (_ *userStack, err error) {
	s := &userStack{packets: packets, link: channel.New(1024, userMTU, "")}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	// Packets that never were on a wire have no checksum yet.
	s.link.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	sack := tcpip.TCPSACKEnabled(true)
	s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s.stack, 0, userConns, s.acceptTCP).HandlePacket)
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s.stack, s.acceptUDP).HandlePacket)
	sandbox := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(userIP.As4()), PrefixLen: 32}
	s.stack.SetRouteTable([]tcpip.Route{{Destination: sandbox.Subnet(), NIC: nic}})
	if err := s.stack.CreateNIC(nic, s.link); err != nil {
		return nil, fmt.Errorf("make network stack: %s", err)
	}
	// The stack stands for every address there is.
	s.stack.SetPromiscuousMode(nic, true)
	s.stack.SetSpoofing(nic, true)
	s.wg.Go(s.readPackets)
	s.wg.Go(s.writePackets)
	return s, nil
}

func (s *userStack) close() error {
	s.mu.Lock()
	s.cancel()
	s.mu.Unlock()
	err := s.packets.Close()
	s.wg.Wait()
	s.stack.Destroy()
	s.link.Close()
	return err
}

// Ethernet frames: the receiver's address, the sender's, the type.
const (
	frameHeader = 14
	typeIPv4    = 0x0800
)

// readPackets gives the stack what the sandbox sends.
func (s *userStack) readPackets() {
	buf := make([]byte, frameHeader+65536)
	for {
		n, err := s.packets.Read(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // said once, when the device goes
		}
		if err != nil {
			return
		}
		if n <= frameHeader || binary.BigEndian.Uint16(buf[frameHeader-2:]) != typeIPv4 {
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(buf[frameHeader:n])})
		s.link.InjectInbound(ipv4.ProtocolNumber, pkt)
		pkt.DecRef()
	}
}

// writePackets sends the sandbox what the stack has for it.
func (s *userStack) writePackets() {
	header := slices.Concat(sandboxMAC(userIP), hostMAC, []byte{typeIPv4 >> 8, typeIPv4 & 0xff})
	buf := make([]byte, 0, frameHeader+65536)
	for {
		pkt := s.link.ReadContext(s.ctx)
		if pkt == nil {
			return
		}
		buf = append(buf[:0], header...)
		for _, b := range pkt.AsSlices() {
			buf = append(buf, b...)
		}
		pkt.DecRef()
		// What can't be sent is lost, as on any network.
		_, _ = s.packets.Write(buf)
	}
}

// target is where a flow of the sandbox goes, if it may. The host's loopback
// addresses are not the sandbox's business, nor is whoever might listen to
// packets for many.
func target(id stack.TransportEndpointID) (netip.AddrPort, bool) {
	addr := netip.AddrFrom4(id.LocalAddress.As4())
	ok := !addr.IsLoopback() && !addr.IsUnspecified() && !addr.IsMulticast() &&
		addr.As4()[0] != 0 && addr.As4()[0] < 240 && addr != userGateway && addr != userIP
	return netip.AddrPortFrom(addr, id.LocalPort), ok
}

// serve calls fn in a goroutine that close waits for, unless there are too many
// or it is too late.
func (s *userStack) serve(fn func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == userConns || s.ctx.Err() != nil {
		return false
	}
	s.conns++
	s.wg.Go(func() {
		fn()
		s.mu.Lock()
		s.conns--
		s.mu.Unlock()
	})
	return true
}

// acceptTCP is called in a goroutine of its own.
func (s *userStack) acceptTCP(r *tcp.ForwarderRequest) {
	to, ok := target(r.ID())
	if !ok {
		r.Complete(true)
		return
	}
	served := s.serve(func() {
		ctx, cancel := context.WithTimeout(s.ctx, dialTimeout)
		defer cancel()
		var d net.Dialer
		outside, err := d.DialContext(ctx, "tcp4", to.String())
		if err != nil {
			r.Complete(true)
			return
		}
		defer outside.Close()
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq)
		r.Complete(false)
		if terr != nil {
			return
		}
		inside := gonet.NewTCPConn(&wq, ep)
		defer inside.Close()
		s.join(inside, outside.(*net.TCPConn))
	})
	if !served {
		r.Complete(true)
	}
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// join passes bytes both ways until both ends have ended, or the network has.
func (s *userStack) join(a, b halfCloser) {
	defer context.AfterFunc(s.ctx, func() {
		a.Close()
		b.Close()
	})()
	pass := func(to, from halfCloser) {
		_, err := io.Copy(to, from)
		if err != nil {
			// One end is broken. The other has no way to be told but this.
			to.Close()
			from.Close()
			return
		}
		to.CloseWrite()
	}
	var wg sync.WaitGroup
	wg.Go(func() { pass(a, b) })
	pass(b, a)
	wg.Wait()
}

func (s *userStack) acceptUDP(r *udp.ForwarderRequest) {
	to, ok := target(r.ID())
	if !ok {
		return
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		return
	}
	inside := gonet.NewUDPConn(&wq, ep)
	served := s.serve(func() {
		defer inside.Close()
		var d net.Dialer
		outside, err := d.DialContext(s.ctx, "udp4", to.String())
		if err != nil {
			return
		}
		defer outside.Close()
		s.passDatagrams(inside, outside)
	})
	if !served {
		inside.Close()
	}
}

// passDatagrams passes datagrams both ways until none have come for a while.
func (s *userStack) passDatagrams(a, b net.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	idle := time.AfterFunc(udpIdle, cancel)
	defer idle.Stop()
	defer context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})()
	pass := func(to, from net.Conn) {
		buf := make([]byte, 65535)
		for {
			n, err := from.Read(buf)
			if errors.Is(err, unix.ECONNREFUSED) { // of an earlier datagram
				continue
			}
			if err != nil {
				cancel()
				return
			}
			idle.Reset(udpIdle)
			to.Write(buf[:n])
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { pass(a, b) })
	pass(b, a)
	wg.Wait()
}
