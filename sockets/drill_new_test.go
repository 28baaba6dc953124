package sockets_test

import (
	"reflect"
	"strconv"
	"syscall"

	"xdpd/internal/drill"
	"xdpd/proto"
	"xdpd/sockets"
)

// call calls a method of the Host that may not be there yet; its last result is an Errno.
func (d *drillHost) call(name string, args ...any) ([]reflect.Value, syscall.Errno) {
	m := reflect.ValueOf(d.h).MethodByName(name)
	if !m.IsValid() {
		return nil, syscall.ENOSYS
	}
	in := make([]reflect.Value, len(args))
	for i, a := range args {
		in[i] = reflect.ValueOf(a).Convert(m.Type().In(i))
	}
	out := m.Call(in)
	return out, out[len(out)-1].Interface().(syscall.Errno)
}

func (d *drillHost) Connect(addr uint32, port uint16) (drill.Sock, syscall.Errno) {
	out, e := d.call("TCPDial", proto.Addr(0), uint16(0), proto.Addr(addr), port, d.now)
	if out == nil {
		return 0, e
	}
	return d.opened(sockets.Handle(out[0].Uint()), e)
}

func (d *drillHost) Error(s drill.Sock) syscall.Errno {
	_, e := d.call("TCPError", sockets.Handle(s))
	return e
}

func (d *drillHost) Shutdown(s drill.Sock, how string) syscall.Errno {
	if how != "wr" {
		if _, e := d.call("TCPShutdownRead", sockets.Handle(s), d.now); e != 0 {
			return e
		}
	}
	if how == "rd" {
		return 0
	}
	return d.h.TCPShutdown(sockets.Handle(s), d.now)
}

func (d *drillHost) Set(s drill.Sock, option string, args []string) syscall.Errno {
	ns := func(i int) int64 {
		v, _ := strconv.ParseFloat(args[i], 64)
		return int64(v * 1e9)
	}
	var e syscall.Errno
	switch option {
	case "nodelay":
		_, e = d.call("TCPSetNoDelay", sockets.Handle(s), args[0] == "on", d.now)
	case "congestion":
		_, e = d.call("TCPSetCongestion", sockets.Handle(s), args[0])
	case "user_timeout":
		_, e = d.call("TCPSetUserTimeout", sockets.Handle(s), ns(0))
	case "keepalive":
		count, _ := strconv.Atoi(args[2])
		k := struct {
			Idle, Interval int64
			Count          int
		}{ns(0), ns(1), count}
		_, e = d.call("TCPSetKeepAlive", sockets.Handle(s), k, d.now)
	}
	return e
}

// Info falls back on the list of all connections: one whose owner closed it has no handle.
func (d *drillHost) Info(s drill.Sock, remotePort uint16) map[string]any {
	if out, e := d.call("TCPStat", sockets.Handle(s)); out != nil && e == 0 {
		return fields(out[0].Interface())
	}
	for _, i := range d.h.TCPSockets() {
		if i.Remote.Port() == remotePort {
			return fields(i)
		}
	}
	return nil
}
