# The firmware of the emulated machine: enters Linux by its 32-bit boot protocol. A page of boot parameters lies at
# IMAGE, followed by the initial file system and the kernel; machine.py makes all that and Bochs loads it.

        .set IMAGE, 0x1000000
        # Fields of the boot parameters.
        .set SYSSIZE, 0x1f4
        .set CODE32_START, 0x214
        # The least unit in which Bochs allots memory.
        .set BLOCK, 0x20000
        # Where the last 64 KiB of the firmware are mapped below 1 MiB.
        .set ROM, 0xf0000

        .code16
start:
        cli
        lgdtl   %cs:table_pointer
        movl    %cr0, %eax
        orl     $1, %eax
        movl    %eax, %cr0
        ljmpl   $0x10, $ROM + protected

        .code32
protected:
        movw    $0x18, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %fs
        movw    %ax, %gs
        movw    %ax, %ss
        movl    $IMAGE, %esi
        # Bochs reads the image into one run of its memory, but maps only the first block; the others become the ones
        # behind it if they are used in this order, before all else.
        movl    SYSSIZE(%esi), %ecx
        shll    $4, %ecx
        addl    CODE32_START(%esi), %ecx
        movl    %esi, %edi
1:      movl    (%edi), %eax
        addl    $BLOCK, %edi
        cmpl    %ecx, %edi
        jb      1b
        xorl    %ebp, %ebp
        xorl    %ebx, %ebx
        xorl    %edi, %edi
        jmp     *CODE32_START(%esi)

        .balign 8
        # Flat segments for code and data, marked as accessed, for nothing can be written here.
table:  .quad   0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
table_pointer:
        .word   . - table - 1
        .long   ROM + table

        .org    0xfff0
        .code16
        jmp     start
        .org    0x10000
