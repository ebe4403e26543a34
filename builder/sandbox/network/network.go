// Package network gives sandboxes an isolated network with access to the
// outside and working name resolution.
//
// Every sandbox has a network namespace of its own with one interface, eth0,
// and an IPv4 address. As root, the other end of eth0 is a virtual Ethernet
// device of the host, strk<hex>, with a route to this one address: there is no
// bridge, so that sandboxes share no link on which they could pose as each
// other. An nftables table, "inet strake", lets connections out behind the
// host's address and nothing else:
//
//   - a sandbox can't reach another one, and nobody outside can reach it;
//   - it can't send from an address that is not its own, nor IPv6 packets;
//   - it can't reach the host's loopback addresses. Other addresses of the host
//     are reached like any other machine's, and so is the metadata service of
//     clouds, 169.254.169.254, as with Docker.
//
// Addresses are of a /16 network that nothing on the host has a route to. The
// device's name says which one of it it has: as names are unique, all processes
// share the addresses without a record of who has what, and devices die with
// their namespaces, which die with their processes. What stays on the host is
// the table, and net.ipv4.ip_forward=1, which is set if it was off. If another
// firewall drops forwarded packets by default (Docker's, ufw's: the iptables
// chain FORWARD, as nftables sees it), rules that accept those of strk* are put
// into DOCKER-USER or FORWARD. Chains of the old iptables-legacy are left alone.
//
// Without root, or where nftables can't be had, a TCP/IP stack in this process
// is at the other end of eth0 and makes connections with ordinary sockets. It
// carries TCP and UDP, and has the same limits.
//
// Names are resolved by a forwarder in this process that listens at 127.0.0.11
// in every sandbox and asks the host's resolvers from outside, so that even
// those at the host's loopback addresses can be used. There is no IPv6 but that
// between processes of one sandbox.
package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
)

// Options says how networks are made.
type Options struct {
	// StateDir is shared by all processes of a store. Nothing needs to be
	// kept there at present.
	StateDir string
	// Rootless uses the stack in this process. The process is root in a user
	// namespace that does not own the host's network.
	Rootless bool
}

// Network makes endpoints. Its methods may be called at once.
type Network struct {
	resolvers func() (resolvConf, error)

	mu       sync.Mutex
	link     link // nil before the first Connect
	rootless bool
	closed   bool
	open     map[*Endpoint]bool
	// spare is the next Connect's endpoint, made while the last one's sandbox
	// ran. nil: it is not wanted, or being made.
	spare  *Endpoint
	making bool
	// What runs behind: making the spare, taking endpoints down.
	wg   sync.WaitGroup
	errs []error
}

// link connects network namespaces with the outside.
type link interface {
	// connect puts eth0 into ns.
	connect(ns *os.File) (connection, error)
	close() error
}

// connection is one end of a link.
type connection struct {
	ip, gateway netip.Addr
	// ready waits until packets come through, once eth0 is configured.
	ready func() error
	close func() error
}

// New returns a network. It changes nothing on the host until the first
// Connect.
func New(o Options) (*Network, error) {
	return &Network{
		rootless:  o.Rootless,
		resolvers: hostResolvers,
		open:      make(map[*Endpoint]bool),
	}, nil
}

// Endpoint is one sandbox's connection.
type Endpoint struct {
	// NetNS is the network namespace to run in. Nothing keeps it alive but
	// this descriptor, its name server's sockets and the processes in it.
	NetNS *os.File
	// IP is the sandbox's address, empty if it has none.
	IP string
	// ResolvConf is the content of its /etc/resolv.conf.
	ResolvConf []byte
	close      func() error
}

// Connect makes a network namespace connected to the outside.
func (n *Network) Connect(ctx context.Context) (*Endpoint, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	conf, err := n.resolvers()
	if err != nil {
		return nil, err
	}
	l, err := n.linkUp()
	if err != nil {
		return nil, fmt.Errorf("set up network: %w", err)
	}
	e := n.takeSpare()
	if e == nil {
		if e, err = n.connect(l); err != nil {
			return nil, fmt.Errorf("connect sandbox to the network: %w", err)
		}
	}
	e.ResolvConf = conf.forSandbox()
	return e, n.add(e)
}

// add makes e one of the network's open endpoints, and sees to it that there is
// one for the next Connect.
func (n *Network) add(e *Endpoint) error {
	takeDown := e.close
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.Join(os.ErrClosed, takeDown())
	}
	n.open[e] = true
	// The kernel takes some 10 ms to close a packet socket. No step waits for
	// that.
	e.close = func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if !n.open[e] {
			return nil
		}
		delete(n.open, e)
		n.wg.Go(func() {
			err := takeDown()
			n.mu.Lock()
			n.errs = append(n.errs, err)
			n.mu.Unlock()
		})
		return nil
	}
	if n.spare == nil && !n.making {
		n.making = true
		n.wg.Go(n.makeSpare)
	}
	return nil
}

func (n *Network) takeSpare() *Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.spare
	n.spare = nil
	return e
}

func (n *Network) makeSpare() {
	// If it can't be made the next Connect says why.
	e, _ := n.connect(n.link)
	n.mu.Lock()
	n.making = false
	if !n.closed {
		n.spare = e
		e = nil
	}
	n.mu.Unlock()
	if e != nil {
		_ = e.close()
	}
}

// linkUp returns the network's link, and makes it if there is none yet.
func (n *Network) linkUp() (link, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, os.ErrClosed
	}
	if n.link != nil {
		return n.link, nil
	}
	var rootErr error
	if !n.rootless {
		var l *routed
		if l, rootErr = newRouted(); rootErr == nil {
			n.link = l
			return l, nil
		}
	}
	// A kernel without nftables, a container without the right to use it: the
	// stack in this process needs less.
	l, err := newUserMode()
	if err != nil {
		return nil, errors.Join(rootErr, err)
	}
	n.link = l
	return l, nil
}

// connect makes an endpoint that is not one of the network's yet.
func (n *Network) connect(l link) (*Endpoint, error) {
	var closers []func() error
	e := &Endpoint{close: func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}}
	err := func() (err error) {
		if e.NetNS, err = newNetNS(); err != nil {
			return err
		}
		closers = append(closers, e.NetNS.Close)
		c, err := l.connect(e.NetNS)
		if err != nil {
			return err
		}
		e.IP = c.ip.String()
		closers = append(closers, c.close)
		err = inNetNS(e.NetNS, func() error {
			if err := configureSandbox(c.ip, c.gateway); err != nil {
				return err
			}
			dns, err := listenDNS(n.resolvers)
			if err != nil {
				return err
			}
			closers = append(closers, dns.close)
			return nil
		})
		if err != nil {
			return err
		}
		return c.ready()
	}()
	if err != nil {
		return nil, errors.Join(err, e.close())
	}
	return e, nil
}

// Close takes the connection down. It may be called twice. What takes time goes
// on behind; Network.Close waits for it and returns its errors.
func (e *Endpoint) Close() error { return e.close() }

// Close ends what this process runs for the network; endpoints that are still
// open are closed.
func (n *Network) Close() error {
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return nil
	}
	n.closed = true
	open := slices.Collect(maps.Keys(n.open))
	spare := n.spare
	n.spare = nil
	n.mu.Unlock()
	for _, e := range open {
		_ = e.Close() // its error comes below
	}
	n.wg.Wait()
	if spare != nil {
		n.errs = append(n.errs, spare.close())
	}
	if n.link != nil {
		n.errs = append(n.errs, n.link.close())
	}
	return errors.Join(n.errs...)
}
