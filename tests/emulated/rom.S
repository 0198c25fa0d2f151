# The firmware of the emulated machine. It enters Linux by the 32-bit boot protocol. machine.py makes
# the image: boot parameters, initial file system, kernel. Bochs loads it at IMAGE.

        .set IMAGE, 0x1000000
        # Fields of the boot parameters.
        .set SYSSIZE, 0x1f4
        .set CODE32_START, 0x214
        # The unit in which Bochs allocates memory.
        .set BLOCK, 0x20000
        # The address of the firmware below 1 MiB.
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
        # Bochs reads the image into contiguous host memory but maps only its first block. Each
        # further block is mapped at its first access, to the next host memory. Access in order,
        # before any other memory, therefore maps the whole image.
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
        # Flat segments for code and data. They are marked as accessed because this is read-only.
table:  .quad   0, 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
table_pointer:
        .word   . - table - 1
        .long   ROM + table

        .org    0xfff0
        .code16
        jmp     start
        .org    0x10000
