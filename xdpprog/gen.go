package xdpprog

// Both multiarch include directories are named because asm/types.h lives in one of them on Debian; the compiler
// ignores the one that is not there. Source and sink need the atomics and 32-bit jumps of the third instruction set,
// which every kernel that can run them has (Linux 5.12).
//go:generate go tool bpf2go -target bpfel steer bpf/steer.c -- -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel forward bpf/forward.c -- -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel source bpf/source.c -- -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel sink bpf/sink.c -- -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu
//go:generate go tool bpf2go -target bpfel dispatcher bpf/dispatcher.c -- -Wall -Werror -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu

// clangMajor is the compiler that made the committed object (Debian 12's); another major version may lay out the same
// source in other instructions.
const clangMajor = "14"
