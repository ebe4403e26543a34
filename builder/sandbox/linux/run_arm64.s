#include "textflag.h"

// func spawn(args unsafe.Pointer, size uintptr, first unsafe.Pointer) uintptr
//
// The child has our memory and our stack pointer: it must not touch the stack.
TEXT ·spawn(SB), NOSPLIT|NOFRAME, $0-32
	MOVD	args+0(FP), R0
	MOVD	size+8(FP), R1
	MOVD	first+16(FP), R19
	MOVD	$435, R8 // clone3
	SVC
	CBZ	R0, run
	MOVD	R0, ret+24(FP)
	RET

run:
	MOVD	0(R19), R8
	MOVD	8(R19), R0
	MOVD	16(R19), R1
	MOVD	24(R19), R2
	MOVD	32(R19), R3
	MOVD	40(R19), R4
	MOVD	48(R19), R5
	MOVD	56(R19), R20
	TBZ	$0, R20, arg1
	MOVD	(R0), R0
arg1:
	TBZ	$1, R20, arg2
	MOVD	(R1), R1
arg2:
	TBZ	$2, R20, arg3
	MOVD	(R2), R2
arg3:
	TBZ	$3, R20, arg4
	MOVD	(R3), R3
arg4:
	TBZ	$4, R20, arg5
	MOVD	(R4), R4
arg5:
	TBZ	$5, R20, call
	MOVD	(R5), R5
call:
	SVC
	MOVD	R0, 64(R19)
	CMN	$4095, R0
	BHS	fail
	CBNZ	R0, ok
	MOVD	80(R19), R20
	CBZ	R20, ok
	MOVD	R20, R19
	B	run
ok:
	MOVD	72(R19), R19
	B	run
fail:
	MOVD	88(R19), R19
	B	run
