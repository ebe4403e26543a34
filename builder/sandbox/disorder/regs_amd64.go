package disorder

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// result is what a system call returned, and its second argument.
func result(r *unix.PtraceRegs) (n int, addr uintptr) { return int(r.Rax), uintptr(r.Rsi) }
