// Programmatic dependent launch: a kernel may start while its predecessor in the stream still runs, and
// waits here before it touches memory that others write. Where a launch does not ask for it, both do
// nothing.
#pragma once

namespace flexact::cuda {

// Everything that was launched before has finished, and what it wrote can be read. Before this, a kernel
// may read only what no launch of this stream writes.
__device__ __forceinline__ void wait_for_predecessors() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The successor may start when every block has come here. Only after wait_for_predecessors(): so what
// runs early knows that all but its direct predecessor have finished.
__device__ __forceinline__ void let_successor_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace flexact::cuda
