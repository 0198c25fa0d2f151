package attention

// #include "calls.h"
import "C"

import (
	"runtime/cgo"
	"sync"
	"unsafe"
)

// Pool is threads that compute: the library's own, or those of functions in Go.
type Pool struct {
	c      *C.fa_pool
	handle cgo.Handle
	own    bool
	mutex  sync.RWMutex // Close waits for calls
}

// NewPool makes a pool of so many threads, the calling one included; 0 = one per core. Close ends
// them. Several goroutines may use one pool at once.
func NewPool(threads int) (*Pool, error) {
	p := &Pool{own: true}
	if status := C.fa_pool_create(number(threads), &p.c); status != C.FA_OK {
		return nil, failed(status, "")
	}
	return p, nil
}

type goPool struct {
	width       int
	parallelFor func(n int, task func(i int))
	mutex       sync.Mutex
	panicked    any
}

// PoolOf makes a pool of a function that calls task(i) once for each i below n, in any order, on
// any goroutines, and returns when all these calls have: see Goroutines. width is how many of them
// compute at the same time, 1 to 256.
func PoolOf(width int, parallelFor func(n int, task func(i int))) (*Pool, error) {
	p := &Pool{handle: cgo.NewHandle(&goPool{width: width, parallelFor: parallelFor})}
	if p.c = C.fa_go_pool(C.uintptr_t(p.handle)); p.c == nil {
		p.handle.Delete()
		return nil, failed(C.FA_ERR_MEMORY, "")
	}
	return p, nil
}

// Goroutines calls each task on a goroutine of its own, for PoolOf.
func Goroutines(n int, task func(i int)) {
	var group sync.WaitGroup
	for i := 1; i < n; i++ {
		i := i
		group.Add(1)
		go func() {
			defer group.Done()
			task(i)
		}()
	}
	if n > 0 {
		task(0)
	}
	group.Wait()
}

// Width is how many threads compute at the same time.
func (p *Pool) Width() int {
	c, done := p.enter()
	defer done()
	return int(C.fa_go_width(c))
}

// Close ends the threads, after the calls that use them. A pool that is closed is the calling
// thread alone.
func (p *Pool) Close() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.c == nil {
		return
	}
	if p.own {
		C.fa_pool_destroy(p.c)
	} else {
		C.free(unsafe.Pointer(p.c))
		p.handle.Delete()
	}
	p.c = nil
}

// The pool for a call, and what to call after it.
func (p *Pool) enter() (*C.fa_pool, func()) {
	if p == nil {
		return nil, func() {}
	}
	p.mutex.RLock()
	return p.c, func() {
		var panicked any
		if p.c != nil && !p.own {
			panicked = p.handle.Value().(*goPool).took()
		}
		p.mutex.RUnlock()
		if panicked != nil {
			panic(panicked)
		}
	}
}

func (g *goPool) took() any {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	panicked := g.panicked
	g.panicked = nil
	return panicked
}

//export fa_go_pool_width
func fa_go_pool_width(handle C.uintptr_t) C.int32_t {
	return number(cgo.Handle(handle).Value().(*goPool).width)
}

// A panic must not leave it through C: the library does what is left, and the call panics after it.
//
//export fa_go_pool_each
func fa_go_pool_each(handle C.uintptr_t, n C.size_t, task C.fa_task, arg unsafe.Pointer) {
	g := cgo.Handle(handle).Value().(*goPool)
	defer func() {
		if panicked := recover(); panicked != nil {
			g.mutex.Lock()
			g.panicked = panicked
			g.mutex.Unlock()
		}
	}()
	g.parallelFor(int(n), func(i int) {
		if i >= 0 {
			C.fa_go_call(task, arg, C.size_t(i))
		}
	})
}
