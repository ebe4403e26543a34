package parser

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

func (s *stage) expose(c *instructions.ExposeCommand) error {
	var ports []string
	for _, spec := range c.Ports {
		words, err := s.t.expander.words(spec, s.env)
		if err != nil {
			return err
		}
		for _, w := range words {
			exposed, err := s.port(c, w)
			if err != nil {
				return mark(s.t.errorf(c, "EXPOSE %s: %w", shorten(w), err), w)
			}
			ports = append(ports, exposed...)
			if err := s.t.budget.charge(32 * len(exposed)); err != nil {
				return err
			}
		}
	}
	if s.image.Config.ExposedPorts == nil {
		s.image.Config.ExposedPorts = map[string]struct{}{}
	}
	for _, p := range ports {
		s.image.Config.ExposedPorts[p] = struct{}{}
	}
	return s.record(fmt.Sprintf("EXPOSE %v", ports), false)
}

// port returns what "[[ip:]host:]port[-port][/protocol]" exposes, as
// "port/protocol". The address and the port of the host say nothing in a build
// file but are checked.
func (s *stage) port(c *instructions.ExposeCommand, spec string) ([]string, error) {
	addr, host, ports := "", "", spec
	if i := strings.LastIndexByte(spec, ':'); i >= 0 {
		host, ports = spec[:i], spec[i+1:]
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			addr, host = host[:i], host[i+1:]
		}
	}
	ports, proto, _ := strings.Cut(ports, "/")
	if ports == "" {
		return nil, fmt.Errorf("no port")
	}
	switch strings.ToLower(proto) {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("protocol %q is none of tcp, udp, sctp", proto)
	}
	if proto != strings.ToLower(proto) {
		s.lint.Run(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(spec))
	}
	if addr != "" || host != "" {
		s.lint.Run(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(spec))
	}
	if addr != "" {
		bare := addr
		if strings.HasPrefix(addr, "[") && strings.HasSuffix(addr, "]") {
			bare = addr[1 : len(addr)-1]
		}
		if _, err := netip.ParseAddr(bare); err != nil {
			return nil, fmt.Errorf("%q is no IP address", addr)
		}
	}
	first, last, err := portRange(ports)
	if err != nil {
		return nil, err
	}
	if host != "" {
		hostFirst, hostLast, err := portRange(host)
		if err != nil {
			return nil, fmt.Errorf("port of the host: %w", err)
		}
		if last-first != hostLast-hostFirst && last != first {
			return nil, fmt.Errorf("the ranges %s and %s differ in length", host, ports)
		}
	}
	out := make([]string, 0, last-first+1)
	for p := first; p <= last; p++ {
		out = append(out, strconv.Itoa(p)+"/"+strings.ToLower(proto))
	}
	return out, nil
}

// portRange reads "8000" or "8000-8010".
func portRange(s string) (first, last int, err error) {
	from, to, more := strings.Cut(s, "-")
	if first, err = portNumber(from); err != nil {
		return 0, 0, err
	}
	if !more || from == to {
		return first, first, nil
	}
	if last, err = portNumber(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("range %s ends before it begins", s)
	}
	return first, last, nil
}

func portNumber(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 65535 {
		return 0, fmt.Errorf("%q is no port number (0 to 65535)", s)
	}
	return n, nil
}
