package network

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// resolvConf is what a resolv.conf says.
type resolvConf struct {
	servers []netip.Addr
	search  []string
	options []string
}

const resolvConfPath = "/etc/resolv.conf"

// HostResolvConf is the /etc/resolv.conf for sandboxes that use the host's
// network. It is empty if the host has none: resolvers ask 127.0.0.1 then.
func HostResolvConf() ([]byte, error) {
	f, err := os.Open(resolvConfPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resolvConfPath, err)
	}
	return b, nil
}

func hostResolvers() (resolvConf, error) {
	b, err := HostResolvConf()
	if err != nil {
		return resolvConf{}, err
	}
	return parseResolvConf(b), nil
}

// parseResolvConf reads what resolv.conf(5) describes, and passes over what it
// does not.
func parseResolvConf(b []byte) resolvConf {
	var c resolvConf
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") || strings.HasPrefix(fields[0], ";") {
			continue
		}
		switch args := fields[1:]; fields[0] {
		case "nameserver":
			// The resolver of the C library uses no more than 3.
			if addr, err := netip.ParseAddr(args[0]); err == nil && len(c.servers) < 3 {
				c.servers = append(c.servers, addr)
			}
		case "domain", "search":
			c.search = args
		case "options":
			c.options = append(c.options, args...)
		}
	}
	if len(c.servers) == 0 {
		c.servers = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return c
}

// forSandbox is the resolv.conf of a sandbox. The forwarder asks the servers one
// after the other itself, and nobody vouches for its being trusted.
func (c resolvConf) forSandbox() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "nameserver %s\n", dnsAddr)
	if len(c.search) > 0 && !slices.Equal(c.search, []string{"."}) {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	options := slices.DeleteFunc(slices.Clone(c.options), func(o string) bool {
		return o == "rotate" || o == "trust-ad"
	})
	if len(options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(options, " "))
	}
	return b.Bytes()
}
