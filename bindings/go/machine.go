package attention

// #include "calls.h"
import "C"

import (
	"fmt"
	"unsafe"
)

// ISA is the instruction set that calls use from now on.
func ISA() string { return C.GoString(C.fa_isa()) }

// LimitISA caps the instruction set of all calls that begin later, for tests and comparisons; "" =
// no cap.
func LimitISA(name string) error {
	if name == "" {
		return failed(C.fa_limit_isa(nil), "")
	}
	c := C.CString(name)
	defer C.free(unsafe.Pointer(c))
	return failed(C.fa_limit_isa(c), "")
}

// EnableAMX lets all calls in the process that begin later use AMX. It asks the system for it,
// which makes frames of signals larger; the error says why this process has none.
func EnableAMX() error {
	var why words
	return why.failed(C.fa_enable_amx(&why[0], C.size_t(len(why))))
}

// Version is the library's, such as "0.2.0".
func Version() string {
	v := uint32(C.fa_version())
	return fmt.Sprintf("%d.%d.%d", v>>16, v>>8&255, v&255)
}

// ABIVersion is that of the binary interface that the library has; HeaderABIVersion that of the
// header that this package was built with. They are the same if both fit.
func ABIVersion() int { return int(C.fa_abi_version()) }

// HeaderABIVersion is FA_ABI_VERSION.
const HeaderABIVersion = C.FA_ABI_VERSION
