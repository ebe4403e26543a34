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
	"sync"
	"time"
)

// dnsAddr is where names are resolved in a sandbox; Docker has it there too.
var dnsAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

const (
	dnsPort = 53
	// A resolver is given so much time before the next one is asked. C
	// libraries ask again after 5 seconds.
	dnsTimeout = 2500 * time.Millisecond
	// So many questions of a sandbox are answered at once; more wait in the
	// socket.
	dnsParallel = 64
	// A connection to the forwarder is closed after so much silence.
	dnsIdle = 10 * time.Second

	dnsHeader  = 12
	maxMessage = 65535
)

// forwarder passes DNS messages on. It looks at no more of them than that they
// are questions and answers.
type forwarder struct {
	resolvers func() (resolvConf, error)
	ctx       context.Context // ended by close, for all that runs below
	cancel    context.CancelFunc
	udp       *net.UDPConn
	tcp       *net.TCPListener
	slots     chan struct{}
	wg        sync.WaitGroup
}

// listenDNS starts a forwarder in the network namespace of this thread. It asks
// the resolvers from the namespace of the process, those that there are at that
// time.
func listenDNS(resolvers func() (resolvConf, error)) (*forwarder, error) {
	addr := netip.AddrPortFrom(dnsAddr, dnsPort)
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("serve names: %w", err)
	}
	tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(addr))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("serve names: %w", err), udp.Close())
	}
	f := &forwarder{resolvers: resolvers, udp: udp, tcp: tcp, slots: make(chan struct{}, dnsParallel)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.wg.Go(f.serveUDP)
	f.wg.Go(f.serveTCP)
	return f, nil
}

func (f *forwarder) close() error {
	f.cancel()
	err := errors.Join(f.udp.Close(), f.tcp.Close())
	f.wg.Wait()
	return err
}

// run calls fn in a goroutine when there is a slot.
func (f *forwarder) run(fn func()) {
	select {
	case f.slots <- struct{}{}:
	case <-f.ctx.Done():
		return
	}
	f.wg.Go(func() {
		defer func() { <-f.slots }()
		fn()
	})
}

func (f *forwarder) serveUDP() {
	buf := make([]byte, maxMessage)
	for {
		n, from, err := f.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !isQuestion(buf[:n]) {
			continue
		}
		question := append([]byte(nil), buf[:n]...)
		f.run(func() {
			if answer := f.ask("udp", question); answer != nil {
				f.udp.WriteToUDPAddrPort(answer, from)
			}
		})
	}
}

func (f *forwarder) serveTCP() {
	for {
		c, err := f.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, say
			select {
			case <-f.ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		f.run(func() {
			defer c.Close()
			defer context.AfterFunc(f.ctx, func() { c.Close() })()
			for {
				c.SetDeadline(time.Now().Add(dnsIdle))
				question, err := readMessage(c)
				if err != nil || !isQuestion(question) {
					return
				}
				answer := f.ask("tcp", question)
				if answer == nil || writeMessage(c, answer) != nil {
					return
				}
			}
		})
	}
}

// ask returns the first good answer of a server, else the last bad one, and
// one that says that there was none if there was none.
func (f *forwarder) ask(network string, question []byte) []byte {
	answer := serverFailure(question)
	conf, err := f.resolvers()
	if err != nil {
		return answer
	}
	for _, s := range conf.servers {
		a, err := f.askServer(network, netip.AddrPortFrom(s, dnsPort), question)
		if f.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue
		}
		answer = a
		if rcode := a[3] & 15; rcode != rcodeServFail && rcode != rcodeRefused && rcode != rcodeNotImplemented {
			break
		}
	}
	return answer
}

func (f *forwarder) askServer(network string, server netip.AddrPort, question []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(f.ctx, dnsTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if network == "tcp" {
		if err := writeMessage(c, question); err != nil {
			return nil, err
		}
		answer, err := readMessage(c)
		if err == nil && !isAnswer(answer, question) {
			err = errors.New("not an answer")
		}
		return answer, err
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	buf := make([]byte, maxMessage)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if isAnswer(buf[:n], question) {
			return buf[:n], nil
		}
	}
}

// Bytes 2 and 3 of a message (RFC 1035, section 4.1.1).
const (
	bitResponse = 0x80 // of byte 2
	opcodeMask  = 0x78 // of byte 2; 0 is QUERY

	rcodeServFail       = 2
	rcodeNotImplemented = 4
	rcodeRefused        = 5
)

func isQuestion(m []byte) bool {
	return len(m) >= dnsHeader && m[2]&(bitResponse|opcodeMask) == 0
}

func isAnswer(m, question []byte) bool {
	return len(m) >= dnsHeader && m[0] == question[0] && m[1] == question[1] && m[2]&bitResponse != 0
}

// serverFailure is the answer where there is none. It repeats the question.
func serverFailure(question []byte) []byte {
	m := append([]byte(nil), question...)
	m[2] = m[2]&1 | bitResponse
	m[3] = bitResponse | rcodeServFail // recursion is available
	return m
}

// readMessage reads a message from a stream: its length comes first.
func readMessage(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, m)
	return m, err
}

func writeMessage(w io.Writer, m []byte) error {
	if len(m) > maxMessage {
		return os.ErrInvalid
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return err
}
