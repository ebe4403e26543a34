package disorder

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// result is what a system call returned, and its second argument.
func result(r *unix.PtraceRegs) (n int, addr uintptr) { return int(r.Regs[0]), uintptr(r.Regs[1]) }
