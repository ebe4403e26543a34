#include "textflag.h"

// func spawn(args unsafe.Pointer, size uintptr, first unsafe.Pointer) uintptr
//
// The child has our memory and our stack pointer: it must not touch the stack.
TEXT ·spawn(SB), NOSPLIT|NOFRAME, $0-32
	MOVQ	args+0(FP), DI
	MOVQ	size+8(FP), SI
	MOVQ	first+16(FP), R12
	MOVQ	$435, AX // clone3
	SYSCALL
	TESTQ	AX, AX
	JZ	run
	MOVQ	AX, ret+24(FP)
	RET

run:
	MOVQ	0(R12), AX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	MOVQ	56(R12), R13
	TESTQ	$1, R13
	JZ	arg1
	MOVQ	(DI), DI
arg1:
	TESTQ	$2, R13
	JZ	arg2
	MOVQ	(SI), SI
arg2:
	TESTQ	$4, R13
	JZ	arg3
	MOVQ	(DX), DX
arg3:
	TESTQ	$8, R13
	JZ	arg4
	MOVQ	(R10), R10
arg4:
	TESTQ	$16, R13
	JZ	arg5
	MOVQ	(R8), R8
arg5:
	TESTQ	$32, R13
	JZ	call
	MOVQ	(R9), R9
call:
	SYSCALL
	MOVQ	AX, 64(R12)
	CMPQ	AX, $0xfffffffffffff001
	JCC	fail
	TESTQ	AX, AX
	JNZ	ok
	MOVQ	80(R12), R13
	TESTQ	R13, R13
	JZ	ok
	MOVQ	R13, R12
	JMP	run
ok:
	MOVQ	72(R12), R12
	JMP	run
fail:
	MOVQ	88(R12), R12
	JMP	run
