package parser

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// linuxSignals are the signals of Linux by name, but for the real-time ones.
const linuxSignals = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV " +
	"STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ"

// signalNames returns the names of all signals, as SIGNAME.
func signalNames() []string {
	names := strings.Fields(linuxSignals)
	names = append(names, "RTMIN", "RTMAX")
	for i := 1; i <= 15; i++ {
		names = append(names, fmt.Sprintf("RTMIN+%d", i))
		if i < 15 {
			names = append(names, fmt.Sprintf("RTMAX-%d", i))
		}
	}
	for i := range names {
		names[i] = "SIG" + names[i]
	}
	return names
}

// isSignal reports whether STOPSIGNAL takes s: a number, or a name with or
// without SIG, in any case.
func isSignal(s string) bool {
	if n, err := strconv.Atoi(s); err == nil {
		return n != 0
	}
	return slices.Contains(signalNames(), "SIG"+strings.TrimPrefix(strings.ToUpper(s), "SIG"))
}
