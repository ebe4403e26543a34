// Package network gives sandboxes an isolated network with access to the
// outside and working name resolution: a bridge with nftables where we are
// root, a user-mode network stack where we are not.
package network

import (
	"context"
	"os"
)

// Options says how networks are made.
type Options struct {
	// StateDir is shared by all processes of a store; addresses are given
	// out there.
	StateDir string
	Rootless bool
}

// Network makes endpoints.
type Network struct{}

// New returns a network. It changes nothing on the host until the first
// Connect.
func New(o Options) (*Network, error) { panic("unwritten") }

// Endpoint is one sandbox's connection.
type Endpoint struct {
	// NetNS is the network namespace to run in. Nothing keeps it alive but
	// this descriptor and the processes in it.
	NetNS *os.File
	// IP is the sandbox's address, empty if it has none.
	IP string
	// ResolvConf is the content of its /etc/resolv.conf.
	ResolvConf []byte
	close      func() error
}

// Connect makes a network namespace connected to the outside.
func (n *Network) Connect(ctx context.Context) (*Endpoint, error) { panic("unwritten") }

// Close takes the connection down.
func (e *Endpoint) Close() error { panic("unwritten") }

// Close ends what this process runs for the network.
func (n *Network) Close() error { panic("unwritten") }

// HostResolvConf is the /etc/resolv.conf for sandboxes that use the host's
// network.
func HostResolvConf() ([]byte, error) { panic("unwritten") }
