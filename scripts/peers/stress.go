package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
)

// Short tasks, many at once. A shim that arms its wait too late, mixes up two exits or closes a pipe too early shows it here.

type job struct {
	name   string
	args   []string
	status uint32
	output []byte
}

var jobs = []job{
	{"true", []string{"true"}, 0, nil},
	{"exit 7", []string{"sh", "-c", "exit 7"}, 7, nil},
	{"1 MB of output", []string{"sh", "-c", "yes 0123456789abcde | head -c 1048576"}, 0, bytes.Repeat([]byte("0123456789abcde\n"), 65536)},
}

// tally says how the tasks of one runtime ended.
type tally struct {
	Runtime  string         `json:"runtime"`
	Right    map[string]int `json:"right"`
	Of       map[string]int `json:"of"`
	Seconds  float64        `json:"seconds"`
	Failures []string       `json:"failures,omitempty"`
}

func stress(ctx context.Context, args []string) error {
	var c common
	f := flag.NewFlagSet("stress", flag.ExitOnError)
	c.register(f)
	tasks := f.Int("tasks", 200, "tasks for each runtime")
	parallel := f.Int("parallel", 20, "of them at once")
	limit := f.Duration("limit", time.Minute, "for one task; a slower one counts as hanging")
	f.Parse(args)
	if err := c.choose("creto,runc"); err != nil {
		return err
	}
	var tallies []tally
	wrong := 0
	for _, r := range c.runtimes {
		var t tally
		err := jailed(ctx, &c, "jailed-stress", []string{"-runtime", r.Name, "-tasks", strconv.Itoa(*tasks), "-parallel", strconv.Itoa(*parallel), "-limit", limit.String()}, &t)
		cleanCgroups("creto-stress")
		if err != nil {
			return err
		}
		tallies = append(tallies, t)
	}
	fmt.Printf("%d tasks, %d at a time; right = exit status twice (wait, delete) and every byte of both outputs\n\n%-8s", *tasks, *parallel, "runtime")
	for _, j := range jobs {
		fmt.Printf("  %-15s", j.name)
	}
	fmt.Println("  seconds")
	for _, t := range tallies {
		fmt.Printf("%-8s", t.Runtime)
		for _, j := range jobs {
			fmt.Printf("  %-15s", fmt.Sprintf("%d of %d", t.Right[j.name], t.Of[j.name]))
		}
		fmt.Printf("  %.1f\n", t.Seconds)
		if t.Runtime == "creto" {
			wrong = len(t.Failures)
		}
	}
	for _, t := range tallies {
		for i, failure := range t.Failures {
			if i == 10 {
				fmt.Printf("%s: and %d more (--json FILE has them all)\n", t.Runtime, len(t.Failures)-10)
				break
			}
			fmt.Printf("%s: %s\n", t.Runtime, failure)
		}
	}
	if err := writeJSON(c.json, map[string]any{"date": time.Now().UTC().Format(time.RFC3339), "tasks": *tasks, "parallel": *parallel, "runtimes": tallies}); err != nil {
		return err
	}
	if wrong > 0 {
		return fmt.Errorf("%d of creto's tasks did not end as they should", wrong)
	}
	return nil
}

func jailedStress(ctx context.Context, args []string) error {
	var c common
	f := flag.NewFlagSet("jailed-stress", flag.ExitOnError)
	c.register(f)
	log := f.String("log", "", "containerd's log")
	tasks := f.Int("tasks", 0, "")
	parallel := f.Int("parallel", 1, "")
	limit := f.Duration("limit", time.Minute, "")
	f.Parse(args)
	ctx, n, err := startNode(ctx, c.busybox, *log, "creto-stress")
	if err != nil {
		return err
	}
	r := c.runtimes[0]
	t := tally{Runtime: r.Name, Right: map[string]int{}, Of: map[string]int{}}
	done := 0
	var mutex sync.Mutex
	var group sync.WaitGroup
	slots := make(chan struct{}, *parallel)
	started := time.Now()
	for i := range *tasks {
		slots <- struct{}{}
		group.Add(1)
		go func() {
			defer group.Done()
			defer func() { <-slots }()
			j := jobs[i%len(jobs)]
			id := fmt.Sprintf("stress-%d", i)
			// A task that hangs may hang its cleaning up too: the limit is for the verdict, and the jail's end for the rest.
			verdict := make(chan error, 1)
			go func() { verdict <- n.runJob(ctx, r, id, j) }()
			select {
			case err = <-verdict:
			case <-time.After(*limit):
				err = fmt.Errorf("hangs: no end within %s", *limit)
			}
			mutex.Lock()
			defer mutex.Unlock()
			t.Of[j.name]++
			if err == nil {
				t.Right[j.name]++
			} else {
				t.Failures = append(t.Failures, fmt.Sprintf("%s (%s): %v", id, j.name, err))
			}
			if done++; done%20 == 0 || done == *tasks {
				fmt.Fprintf(os.Stderr, "stress %s: %d of %d tasks, %d wrong\n", r.Name, done, *tasks, len(t.Failures))
			}
		}()
	}
	group.Wait()
	t.Seconds = time.Since(started).Seconds()
	return writeJSON(c.json, t)
}

// runJob runs one task through its whole life and says what was not as it should be.
func (n *node) runJob(ctx context.Context, r Runtime, id string, j job) (err error) {
	container, err := n.container(ctx, r, id, j.args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, container.Delete(ctx, client.WithSnapshotCleanup)) }()
	var stdout, stderr bytes.Buffer
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, &stdout, &stderr)))
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	abandon := func(what string, err error) error {
		_, e := task.Delete(ctx, client.WithProcessKill)
		return fmt.Errorf("%s: %w", what, errors.Join(err, e))
	}
	exited, err := task.Wait(ctx)
	if err != nil {
		return abandon("wait", err)
	}
	if err := task.Start(ctx); err != nil {
		return abandon("start", err)
	}
	status := <-exited
	if err := status.Error(); err != nil {
		return abandon("wait", err)
	}
	deleted, err := task.Delete(ctx) // waits for the end of both outputs
	if err != nil {
		return abandon("delete", err)
	}
	var wrong []string
	if status.ExitCode() != j.status || deleted.ExitCode() != j.status {
		wrong = append(wrong, fmt.Sprintf("status is %d by wait and %d by delete, not %d", status.ExitCode(), deleted.ExitCode(), j.status))
	}
	if !bytes.Equal(stdout.Bytes(), j.output) {
		wrong = append(wrong, fmt.Sprintf("stdout has %d bytes (%.40q …), not the %d expected", stdout.Len(), stdout.Bytes(), len(j.output)))
	}
	if stderr.Len() > 0 {
		wrong = append(wrong, fmt.Sprintf("stderr has %.80q", stderr.Bytes()))
	}
	if len(wrong) > 0 {
		return errors.New(strings.Join(wrong, "; "))
	}
	return nil
}
