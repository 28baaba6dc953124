package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
)

// controlDir is where running engines are found, and controlDir-USER where those of xdpd run --user USER. Only root and that
// user may look into it.
const controlDir = "/run/xdpd"

func defaultControlPath(iface string) string { return filepath.Join(controlDir, iface+".sock") }

// serveControl answers on a unix socket at path until ctx ends or close is called: HTTP with JSON, so that curl
// --unix-socket can ask as well. GET /stats is a statsView; POST /drain?backend=ADDRESS:PORT is xdpd drain, with &undo=1 its
// --undo; POST /reactors?n=N is xdpd reactors N; POST /mode?m=MODE is xdpd mode MODE; GET /clients and POST
// /clients/evict?id=N are xdpd clients. The socket is its owner's alone (mode 0600; a folder that is made for it 0700). The
// socket of a process that died is replaced; that of a live one is an error.
func serveControl(ctx context.Context, path string, st *xdpd.Stack, svc *services, apps *xdpd.ClientServer) (close func(), err error) {
	return serveAnswers(ctx, path, answers{st.Stats, svc.views, svc.drainBackend, st.Resize, st.SetMode, apps})
}

// answers is what the control socket tells and does.
type answers struct {
	stats    func() (xdpd.Stats, error)
	services func() []serviceView
	drain    func(backend string, on bool) error
	resize   func(n int) error
	setMode  func(xdpd.Mode) error
	clients  *xdpd.ClientServer // nil: it serves none
}

func serveAnswers(ctx context.Context, path string, a answers) (func(), error) {
	mux := http.NewServeMux()
	started := time.Now()
	answerStats(mux, func() (any, error) {
		s, err := a.stats()
		if err != nil {
			return nil, err
		}
		view := newStatsView(&s)
		view.Services = a.services()
		view.PID, view.Commit, view.UptimeSeconds = os.Getpid(), buildCommit(), time.Since(started).Seconds()
		return view, nil
	})
	mux.HandleFunc("POST /drain", func(w http.ResponseWriter, r *http.Request) {
		if err := a.drain(r.FormValue("backend"), r.FormValue("undo") == ""); err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
		}
	})
	mux.HandleFunc("POST /mode", func(w http.ResponseWriter, r *http.Request) {
		m, ok := modes[r.FormValue("m")]
		err := errors.New("there are best, copy and zerocopy: POST /mode?m=copy")
		if ok {
			err = a.setMode(m)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("POST /reactors", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.Atoi(r.FormValue("n"))
		if err != nil {
			err = errors.New("n must be a number of reactors: POST /reactors?n=2")
		} else {
			err = a.resize(n)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	mux.HandleFunc("GET /clients", func(w http.ResponseWriter, _ *http.Request) {
		v := clientsView{Clients: []xdpd.ClientView{}}
		if a.clients != nil {
			list, refused := a.clients.Clients()
			v.Clients, v.Refused = append(v.Clients, list...), refused // never null in JSON
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v) // the asker went away
	})
	mux.HandleFunc("POST /clients/evict", func(w http.ResponseWriter, r *http.Request) {
		id, err := strconv.ParseUint(r.FormValue("id"), 10, 64)
		switch {
		case err != nil:
			err = errors.New("id must be a client's number: POST /clients/evict?id=7")
		case a.clients == nil:
			err = errors.New("it serves no clients")
		default:
			err = a.clients.Evict(id)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusNotFound)
		}
	})
	end, err := serveMux(path, mux)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, end)
	return func() { stop(); end() }, nil
}

// answerStats has GET /stats answered with what view gives.
func answerStats(mux *http.ServeMux, view func() (any, error)) {
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		v, err := view()
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(v) // the asker went away
	})
}

// serveMux answers on a control socket at path until stop is called.
func serveMux(path string, mux *http.ServeMux) (stop func(), err error) {
	l, err := listenControl(path)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(l) })
	return sync.OnceFunc(func() {
		_ = srv.Close() // closes the listener, which removes the socket
		serving.Wait()
	}), nil
}

// listenControl makes the socket.
func listenControl(path string) (net.Listener, error) {
	if err := checkLength(path, "--control"); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, explainUnwritable(err, "--control")
		}
	}
	if err := removeStale("unix", path, "--control"); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		// The file gets the mode of the socket's own inode (net/unix/af_unix.c, unix_bind_bsd): a chmod afterwards
		// would leave the door open for a moment.
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, explainUnwritable(err, "--control")
	}
	return l, nil
}

// checkLength refuses a path that is too long for a socket.
func checkLength(path, option string) error {
	if limit := len(syscall.RawSockaddrUnix{}.Path) - 1; len(path) > limit {
		return fmt.Errorf("the path has %d bytes, a socket's may have %d: name a shorter one with %s", len(path), limit, option)
	}
	return nil
}

// removeStale makes room for the socket, if what is in the way is the socket of a process that is gone. option names another path.
func removeStale(network, path, option string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return explainUnwritable(err, option)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is a file which is no socket; it is not touched: name another path with " + option)
	}
	conn, err := net.DialTimeout(network, path, time.Second)
	if err == nil {
		conn.Close()
		return errors.New("another process listens there: stop it, or name another path with " + option +
			" (an interface of the same name may be in another network namespace)")
	}
	if !errors.Is(err, unix.ECONNREFUSED) { // which says that nobody listens
		return explainUnwritable(err, option)
	}
	if err := os.Remove(path); err != nil {
		return explainUnwritable(err, option)
	}
	return nil
}

// explainUnwritable says by what another path is named.
func explainUnwritable(err error, option string) error {
	for _, denied := range []error{fs.ErrPermission, unix.EROFS} {
		if errors.Is(err, denied) {
			return fmt.Errorf("%w: name a path with %s where you may write", err, option)
		}
	}
	return err
}

// askControl asks the engine behind the socket for its counters. raw is the answer as it came.
func askControl(ctx context.Context, path string) (view statsView, raw []byte, err error) {
	raw, err = callControl(ctx, path, http.MethodGet, "/stats")
	if err != nil {
		return view, nil, err
	}
	var other forwardView
	if err := json.Unmarshal(raw, &view); err != nil {
		return view, nil, fmt.Errorf("control socket %s: the answer is not xdpd's: %w", path, err)
	}
	if json.Unmarshal(raw, &other) == nil && other.Kind != "" {
		return view, nil, fmt.Errorf("control socket %s: %s", path, isForwarder)
	}
	return view, raw, nil
}

func callControl(ctx context.Context, path, method, url string) ([]byte, error) {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	client := http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}, Timeout: 30 * time.Second}
	req, err := http.NewRequestWithContext(ctx, method, "http://xdpd"+url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, explainAsk(path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("control socket %s: %s: %s", path, resp.Status, strings.TrimSpace(string(raw)))
	}
	return raw, nil
}

// tuning is a command that shows something of a running engine, or changes it.
type tuning struct {
	value, iface, control string
	takes                 func(value string) bool // what is no value is an interface
	order                 string                  // for who names the interface first
	change                string                  // the path and parameter that take the value
	show                  func(*statsView) string
}

func (t tuning) run(ctx context.Context, out io.Writer) error {
	word := "" // which is no value, and so an interface
	switch {
	case t.value == "" || t.takes(t.value):
	case t.iface == "":
		word, t.value, t.iface = t.value, "", t.value
	case t.takes(t.iface):
		return &exitError{usageStatus, errors.New(t.order + " " + t.value)}
	default:
		return &exitError{usageStatus, errors.New(t.order + " " + t.iface)}
	}
	path, err := controlOf(t.control, t.iface)
	if err != nil {
		return err
	}
	if t.value != "" {
		_, err := callControl(ctx, path, "POST", t.change+url.QueryEscape(t.value))
		return err
	}
	view, _, err := askControl(ctx, path)
	switch {
	case err != nil && word != "":
		return fmt.Errorf("%w (%s)", err, t.order)
	case err != nil:
		return err
	case word != "" && t.control != "" && word != view.Interface:
		return &exitError{usageStatus, fmt.Errorf("that engine is on %s, not on %s (%s)", view.Interface, word, t.order)}
	}
	_, err = fmt.Fprintln(out, t.show(&view))
	return err
}

const (
	startOne    = "start one with xdpd run, or name its socket with --control"
	askAsRoot   = "ask as the user that runs xdpd, which is mostly root"
	isForwarder = "a forwarder listens there, and not an engine: xdpd forward stats asks it"
)

func explainAsk(path string, err error) error {
	cure := ""
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		cure = "no xdpd listens there: start one with xdpd run or xdpd forward, or name its socket with --control"
	case errors.Is(err, fs.ErrPermission):
		cure = askAsRoot
	default:
		return fmt.Errorf("control socket %s: %w", path, err)
	}
	return fmt.Errorf("control socket %s: %s: %w", path, cure, errors.Unwrap(err))
}

// controlOf is the socket to ask: the one named, that of an interface, or that of the only engine.
func controlOf(path, iface string) (string, error) {
	switch {
	case path != "":
		return path, nil
	case iface != "":
		path = defaultControlPath(iface)
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			if others, _ := filepath.Glob(controlDir + "-*/" + iface + ".sock"); len(others) == 1 {
				return others[0], nil
			}
		}
		return path, nil
	}
	return findControl(controlDir)
}

// listening leaves out, of several sockets, those of processes that were killed.
func listening(network string, paths []string) []string {
	if len(paths) < 2 {
		return paths
	}
	return slices.DeleteFunc(paths, func(path string) bool {
		conn, err := net.DialTimeout(network, path, time.Second)
		if err == nil {
			conn.Close()
		}
		return errors.Is(err, unix.ECONNREFUSED)
	})
}

// findControl finds the socket in dir, or in a dir-USER, when only one engine runs.
func findControl(dir string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*.sock"))
	if err != nil {
		return "", err
	}
	others, err := filepath.Glob(filepath.Join(dir+"-*", "*.sock"))
	if err != nil {
		return "", err
	}
	found = listening("unix", append(found, others...))
	if len(found) == 1 {
		return found[0], nil
	}
	if len(found) > 1 {
		var names []string
		for _, path := range found {
			names = append(names, strings.TrimSuffix(filepath.Base(path), ".sock"))
		}
		return "", fmt.Errorf("several engines are known in %s; say which: xdpd stats %s", dir, strings.Join(names, "|"))
	}
	if err := unix.Access(dir, unix.R_OK|unix.X_OK); errors.Is(err, unix.EACCES) {
		return "", fmt.Errorf("%s: %s: %w", dir, askAsRoot, err)
	}
	return "", fmt.Errorf("there is no control socket in %s: %s", dir, startOne)
}
