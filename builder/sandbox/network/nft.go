package network

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// revision names a chain that is there if the table's rules are these. Change
// it with them.
const revision = "rev1"

var subnetMask = []byte{255, 255, 0, 0}

// addingRules is held while rules are added: the library counts the sets of all
// connections in one variable of its own.
var addingRules sync.Mutex

// addRules makes sure that the table is there and lets addresses of subnet, a
// /16 network, out, and reports whether that was to be done. All that changes is changed at once, so that any number of
// processes can do it without a lock, and connections are not disturbed.
//
//	table inet strake {
//		set subnets { type ipv4_addr; elements = { 10.197.0.0 } }
//		chain rev1 { }
//		chain forward {
//			type filter hook forward priority filter
//			iifname "strk*" oifname "strk*" drop
//			iifname "strk*" meta nfproto ipv6 drop
//			iifname "strk*" ip saddr & 255.255.0.0 != @subnets drop
//			iifname "strk*" ip daddr & 255.255.0.0 @subnets drop
//			oifname "strk*" ct state established,related accept
//			oifname "strk*" drop
//		}
//		chain input {
//			type filter hook input priority filter
//			iifname "strk*" meta nfproto ipv6 drop
//			iifname "strk*" ip saddr & 255.255.0.0 != @subnets drop
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat
//			meta nfproto ipv4 ip saddr & 255.255.0.0 @subnets oifname != "strk*" masquerade
//		}
//	}
func addRules(subnet netip.Addr) (added bool, err error) {
	addingRules.Lock()
	defer addingRules.Unlock()
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "strake"}
	set := &nftables.Set{Table: table, Name: "subnets", KeyType: nftables.TypeIPAddr}
	if haveRules(c, set, subnet) {
		return false, nil
	}
	c.AddTable(table)
	if err := c.AddSet(set, []nftables.SetElement{{Key: subnet.AsSlice()}}); err != nil {
		return false, fmt.Errorf("add nftables set: %w", err)
	}
	c.AddChain(&nftables.Chain{Table: table, Name: revision})
	chain := func(name string, hook *nftables.ChainHook, kind nftables.ChainType, priority *nftables.ChainPriority, rules ...[]expr.Any) {
		ch := c.AddChain(&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
		c.FlushChain(ch)
		for _, exprs := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: exprs})
		}
	}
	from, to := ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq), ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq)
	foreignSource := slices.Concat(from, family(unix.NFPROTO_IPV4), address(12, set, true), verdict(expr.VerdictDrop))
	ipv6 := slices.Concat(from, family(unix.NFPROTO_IPV6), verdict(expr.VerdictDrop))
	chain("forward", nftables.ChainHookForward, nftables.ChainTypeFilter, nftables.ChainPriorityFilter,
		slices.Concat(from, to, verdict(expr.VerdictDrop)),
		ipv6,
		foreignSource,
		slices.Concat(from, family(unix.NFPROTO_IPV4), address(16, set, false), verdict(expr.VerdictDrop)),
		slices.Concat(to, established(), verdict(expr.VerdictAccept)),
		slices.Concat(to, verdict(expr.VerdictDrop)),
	)
	chain("input", nftables.ChainHookInput, nftables.ChainTypeFilter, nftables.ChainPriorityFilter,
		ipv6,
		foreignSource,
	)
	chain("postrouting", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, nftables.ChainPriorityNATSource,
		slices.Concat(family(unix.NFPROTO_IPV4), address(12, set, false), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq), []expr.Any{&expr.Masq{}}),
	)
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("add nftables rules: %w", err)
	}
	return true, nil
}

func haveRules(c *nftables.Conn, set *nftables.Set, subnet netip.Addr) bool {
	if _, err := c.ListChain(set.Table, revision); err != nil {
		return false
	}
	elements, err := c.GetSetElements(set)
	return err == nil && slices.ContainsFunc(elements, func(e nftables.SetElement) bool {
		return slices.Equal(e.Key, subnet.AsSlice())
	})
}

// ifname matches the names of our devices.
func ifname(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte(devicePrefix)}, // no final zero: a prefix
	}
}

func family(f byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f}},
	}
}

// address looks the network of an address of the IPv4 header up.
func address(offset uint32, set *nftables.Set, invert bool) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: subnetMask, Xor: make([]byte, 4)},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: invert},
	}
}

func established() []expr.Any {
	bits := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: bits, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(k expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: k}}
}

// passOtherFirewalls makes the iptables chain FORWARD accept packets from and to
// our devices if it drops others. What may pass is decided by our own table. The
// rules have the form in which iptables itself would write them, or it would
// refuse to work with the table.
func passOtherFirewalls() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return err
	}
	var errs []error
	find := func(name string) *nftables.Chain {
		i := slices.IndexFunc(chains, func(ch *nftables.Chain) bool { return ch.Table.Name == "filter" && ch.Name == name })
		if i < 0 {
			return nil
		}
		return chains[i]
	}
	chain := find("DOCKER-USER")
	if chain == nil {
		chain = find("FORWARD")
		if chain == nil || chain.Policy == nil || *chain.Policy != nftables.ChainPolicyDrop {
			return nil
		}
	}
	rules, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return err
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		if slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return acceptsDevices(r, key) }) {
			continue
		}
		c.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: slices.Concat(
			ifname(key, expr.CmpOpEq), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictAccept))})
		errs = append(errs, c.Flush())
	}
	return errors.Join(errs...)
}

func acceptsDevices(r *nftables.Rule, key expr.MetaKey) bool {
	if len(r.Exprs) < 3 {
		return false
	}
	meta, ok1 := r.Exprs[0].(*expr.Meta)
	cmp, ok2 := r.Exprs[1].(*expr.Cmp)
	v, ok3 := r.Exprs[len(r.Exprs)-1].(*expr.Verdict)
	return ok1 && ok2 && ok3 && meta.Key == key && cmp.Op == expr.CmpOpEq &&
		string(cmp.Data) == devicePrefix && v.Kind == expr.VerdictAccept
}
