// peers runs our shim and its peers through the same things, each in a jail of its own, and says what it saw.
// It is built and called by scripts/conformance and scripts/bench, which install what it needs.
//
//	peers stress  200 short tasks, 20 at a time: every status and every byte (stress.go)
//	peers bench   what each phase of a task's life costs (bench.go)
//	peers jail    not for people: process 1 of a jail (jail.go)
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

func main() {
	runtime.LockOSThread() // a jail dies with the thread that made it: let that be the main one
	commands := map[string]func(context.Context, []string) error{
		"stress": stress, "bench": bench,
		"jail": jail, "jailed-stress": jailedStress, "jailed-bench": jailedBench,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peers stress|bench [flags]   (called by scripts/conformance and scripts/bench)")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := commands[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "peers %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}
