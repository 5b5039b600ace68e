package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// What each phase of a task's life costs: one life of each runtime in turn, so that whatever else the machine does falls on all
// alike. Snapshots and containers (containerd's own work, the same for all) are made outside the measured time.

// phases in the order of the table. "life" is create+start, three execs, kill and delete, one after the other.
var phases = []string{"create+start", "exec first byte", "exec total", "pids", "metrics", "kill → exit", "delete", "life with 3 execs"}

const bare = "bare runsc" // no shim at all: the CLI that a shim drives, run through the same phases

type measured struct {
	Runtime   string               `json:"runtime"`
	Broken    string               `json:"broken,omitempty"` // why it is not in the table
	Failures  []string             `json:"failures,omitempty"`
	Samples   map[string][]float64 `json:"milliseconds"`
	Processes []process            `json:"processes,omitempty"`
}

type benchmark struct {
	Date     string            `json:"date"`
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	N        int               `json:"n"`
	Runtimes []*measured       `json:"runtimes"`
}

func bench(ctx context.Context, args []string) error {
	var c common
	f := flag.NewFlagSet("bench", flag.ExitOnError)
	c.register(f)
	n := f.Int("n", 50, "lives of each runtime")
	f.Parse(args)
	if err := c.choose("creto,runc,runsc"); err != nil {
		return err
	}
	arguments := []string{"-n", strconv.Itoa(*n)}
	for _, r := range c.runtimes {
		arguments = append(arguments, "-runtime", r.Name)
	}
	b := &benchmark{}
	err := jailed(ctx, &c, "jailed-bench", arguments, b)
	cleanCgroups("creto-bench")
	if err != nil {
		return err
	}
	b.Machine, b.Versions = machine(), versions(&c)
	b.print()
	return writeJSON(c.json, b)
}

func jailedBench(ctx context.Context, args []string) error {
	var c common
	f := flag.NewFlagSet("jailed-bench", flag.ExitOnError)
	c.register(f)
	log := f.String("log", "", "containerd's log")
	n := f.Int("n", 50, "")
	f.Parse(args)
	ctx, node, err := startNode(ctx, c.busybox, *log, "creto-bench")
	if err != nil {
		return err
	}
	b := &benchmark{Date: time.Now().UTC().Format(time.RFC3339), N: *n}
	var lives []life
	for _, r := range c.runtimes {
		lives = append(lives, &shimmed{node: node, runtime: r})
	}
	lives = append(lives, &cli{node: node, root: "/run/bare-runsc"})
	results := map[life]*measured{}
	for _, l := range lives {
		results[l] = &measured{Runtime: l.name(), Samples: map[string][]float64{}}
		b.Runtimes = append(b.Runtimes, results[l])
	}

	// Once each, unmeasured: warms caches, weighs the processes, and finds out who cannot start here.
	working := slices.Clone(lives)
	for _, l := range lives {
		say("trying %s", l.name())
		trial := &measured{Samples: map[string][]float64{}}
		if err := within(30*time.Second, func() error { return oneLife(ctx, l, l.id("trial"), trial, true) }); err != nil {
			say("%s does not work here: %v", l.name(), err)
			results[l].Broken = short(err.Error(), 400)
			working = slices.DeleteFunc(working, func(w life) bool { return w == l })
		}
		results[l].Processes = trial.Processes
	}
	for i := range *n {
		if i%10 == 0 {
			say("life %d of %d", i, *n)
		}
		for _, l := range working {
			r := results[l]
			if err := within(60*time.Second, func() error { return oneLife(ctx, l, l.id(strconv.Itoa(i)), r, false) }); err != nil {
				r.Failures = append(r.Failures, err.Error())
			}
		}
	}
	for round := range 3 {
		for _, l := range working {
			say("20 at once, round %d, %s", round+1, l.name())
			if err := within(3*time.Minute, func() error { return twenty(ctx, l, round, results[l]) }); err != nil {
				results[l].Failures = append(results[l].Failures, err.Error())
			}
		}
	}
	for i := range *n {
		for _, l := range working {
			if s, ok := l.(*shimmed); ok {
				if took, err := s.startAction(&c, i); err != nil {
					results[l].Failures = append(results[l].Failures, err.Error())
				} else {
					results[l].add("`start` action", took)
				}
			}
		}
	}
	return writeJSON(c.json, b)
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "[bench] "+format+"\n", args...) }

// within gives up waiting for f after a time; what f started ends with the jail.
func within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("hangs: no end within %s", limit)
	}
}

func (m *measured) add(phase string, took time.Duration) {
	m.Samples[phase] = append(m.Samples[phase], float64(took.Microseconds())/1000)
}

// life is one task's, from create to delete, however it is driven.
type life interface {
	name() string
	id(suffix string) string
	prepare(ctx context.Context, id string) (running, error) // unmeasured
}

type running interface {
	start(ctx context.Context) error // create and start
	exec(ctx context.Context, id string) (firstByte, total time.Duration, err error)
	pids(ctx context.Context) error
	metrics(ctx context.Context) error
	kill(ctx context.Context) error // returns when the exit is known
	delete(ctx context.Context) error
	discard(ctx context.Context) // unmeasured; whatever state it is in
}

func oneLife(ctx context.Context, l life, id string, m *measured, weigh bool) error {
	before := pids()
	task, err := l.prepare(ctx, id)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	defer task.discard(ctx)
	whole := time.Duration(0)
	phase := func(name string, counts bool, f func(context.Context) error) error {
		started := time.Now()
		if err := f(ctx); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		took := time.Since(started)
		if counts {
			whole += took
		}
		m.add(name, took)
		return nil
	}
	if err := phase("create+start", true, task.start); err != nil {
		return err
	}
	if weigh {
		time.Sleep(2 * time.Second) // idle
		m.Processes = weights(before)
	}
	for i := range 3 {
		started := time.Now()
		first, total, err := task.exec(ctx, fmt.Sprintf("%s-exec-%d", id, i))
		if err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		whole += time.Since(started)
		m.add("exec first byte", first)
		m.add("exec total", total)
	}
	if err := errors.Join(
		phase("pids", false, task.pids),
		phase("metrics", false, task.metrics),
	); err != nil {
		m.Failures = append(m.Failures, err.Error()) // the rest is still worth measuring
	}
	if err := phase("kill → exit", true, task.kill); err != nil {
		return err
	}
	if err := phase("delete", true, task.delete); err != nil {
		return err
	}
	m.add("life with 3 execs", whole)
	return nil
}

// twenty measures how long it takes until twenty tasks run that are asked for at once, and until they are all gone again.
func twenty(ctx context.Context, l life, round int, m *measured) error {
	var tasks []running
	for i := range 20 {
		task, err := l.prepare(ctx, l.id(fmt.Sprintf("twenty-%d-%d", round, i)))
		if err != nil {
			return err
		}
		defer task.discard(ctx)
		tasks = append(tasks, task)
	}
	all := func(f func(running) error) (time.Duration, error) {
		errs := make([]error, len(tasks))
		var group sync.WaitGroup
		started := time.Now()
		for i, task := range tasks {
			group.Add(1)
			go func() { defer group.Done(); errs[i] = f(task) }()
		}
		group.Wait()
		return time.Since(started), errors.Join(errs...)
	}
	up, err := all(func(t running) error { return t.start(ctx) })
	if err != nil {
		return fmt.Errorf("20 at once, up: %w", err)
	}
	down, err := all(func(t running) error { return errors.Join(t.kill(ctx), t.delete(ctx)) })
	if err != nil {
		return fmt.Errorf("20 at once, down: %w", err)
	}
	m.add("20 at once: until all run", up)
	m.add("20 at once: until all are gone", down)
	return nil
}
