package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
)

// engineLoad is `xdpd load` from an engine in the peer's namespace: a client of kernel sockets takes longer for a request than
// the servers that are to be compared.
type engineLoad struct {
	kind string
	args []string
}

func (l engineLoad) run(ctx context.Context, at *site, seconds float64) (outcome, error) {
	path, err := at.builder.program(ctx, "../cmd/xdpd")
	if err != nil {
		return outcome{}, fmt.Errorf("%w build: %w", errCannot, err)
	}
	// The address moves from the kernel to the load's engine.
	if _, err := at.lab.Peer.Run(ctx, "ip", "address", "flush", "dev", at.lab.PeerDev); err != nil {
		return outcome{}, err
	}
	args := append([]string{
		"load", l.kind, fmt.Sprintf("%s:%d", at.lab.EngineAddr, port), "-i", at.lab.PeerDev,
		"-a", fmt.Sprintf("%s/%d", at.lab.PeerAddr, at.lab.Subnet.Bits()), "--json", "--allow-errors",
		"-t", strconv.FormatFloat(seconds, 'f', -1, 64) + "s",
	}, l.args...)
	out, user, err := runProgram(ctx, at, path, args...)
	if err != nil {
		return outcome{}, err
	}
	var r engineResult
	if err := json.Unmarshal(out, &r); err != nil {
		return outcome{}, fmt.Errorf("xdpd load printed %q: %w", out, err)
	}
	return outcome{
		rate: r.PerSecond / 1e3, done: float64(r.Responses), p50: r.Latency.P50, p99: r.Latency.P99, user: user,
	}, r.check()
}

// engineResult is what xdpd load prints.
type engineResult struct {
	Responses uint64
	Errors    map[string]uint64
	PerSecond float64                    `json:"responses_per_second"`
	Latency   struct{ P50, P99 float64 } `json:"latency_us"`
}

func (r *engineResult) check() error {
	var failed uint64
	for kind, n := range r.Errors {
		if kind == "wrong_data" && n > 0 {
			return fmt.Errorf("%d replies were not what was sent", n)
		}
		failed += n
	}
	switch {
	case failed > r.Responses/100:
		return fmt.Errorf("%w: %d requests failed, %d did not: %v", errUseless, failed, r.Responses, r.Errors)
	case r.Responses == 0:
		return fmt.Errorf("%w: nothing came back", errUseless)
	}
	return nil
}
