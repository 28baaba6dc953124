/* engine.c: requests to the engine, and what comes of them. */
#include "internal.h"
#include "kernel.h"

/* publish shows the engine what was filled in. If it sleeps it looks when it wakes, for a packet or for kick. */
void publish(void)
{
	if (S->at.submitted != S->at.sq_tail)
		atomic_store(xdpd_ring_word(&ring, XDPD_SQ_TAIL), S->at.sq_tail);
	S->at.submitted = S->at.sq_tail;
}

/* kick has the engine do it now. Once is enough: it costs a system call, and the daemon does not hear for a while who knocks for nothing. */
void kick(void)
{
	if (S->told == S->at.sq_tail && !ring.knock)
		return;
	xdpd_ring_submit(&ring);
	S->told = S->at.sq_tail;
}

/* request gives an SQE to fill in. The file that it is for stays until its completion came. */
struct xdpd_sqe *request(enum kind kind, uint32_t id, int op, int fd)
{
	static struct xdpd_sqe nobody;
	struct xdpd_sqe *s = NULL;
	struct xdpd_cqe c;
	uint32_t gen = kind == K_CALL ? S->slots[id].gen : S->file[id].gen;

	void completed(const struct xdpd_cqe *c);
	for (uint32_t turns = 0; !S->gone && !(s = xdpd_ring_sqe(&ring)); turns++) { /* the engine is behind */
		kick();
		while (xdpd_ring_take(&ring, &c)) /* it takes nothing while the CQ is full */
			completed(&c);
		if (turns > 1000) {
			struct pollfd p = { ring.conn, 0, 0 };
			struct timespec ms = { 0, 1000000 };
			if (k_ppoll(&p, 1, &ms, NULL) > 0)
				lost();
		}
	}
	if (!s)
		memset(s = &nobody, 0, sizeof nobody);
	else
		S->requests++;
	if (s != &nobody && kind != K_CALL)
		S->file[id].requests++;
	s->opcode = (uint8_t)op, s->fd = fd;
	s->user_data = (uint64_t)kind << 56 | (uint64_t)(gen & 0xffffff) << 32 | id;
	return s;
}

void arm_later(struct file *f)
{
	uint32_t id = id_of(f);

	if (!f->todo) {
		f->todo = S->todo ? S->todo : id;
		S->todo = id;
	}
}

/* completed moves the state of a file; it makes no requests, for request may be calling it. */
void completed(const struct xdpd_cqe *c)
{
	enum kind kind = (enum kind)(c->user_data >> 56);
	uint32_t id = (uint32_t)c->user_data, gen = (uint32_t)(c->user_data >> 32) & 0xffffff;
	bool more = c->flags & XDPD_CQE_MORE;
	struct file *f = &S->file[id < FILES ? id : 0];

	if (!more && S->requests)
		S->requests--;
	if (kind == K_CALL) {
		struct slot *s = &S->slots[id % SLOTS];
		if (s->used && (s->gen & 0xffffff) == gen) {
			s->done = true, s->res = c->res;
			wake_slot(s);
		}
		return;
	}
	if (kind == K_SPARE)
		S->spare = c->res < 0 ? 0 : c->res + 1;
	if (f->type != SOCKET || (f->gen & 0xffffff) != gen)
		return;
	S->changing = id;
	if (!more && f->requests)
		f->requests--;
	switch (kind) {
	case K_RECV:
		received(f, c->res);
		break;
	case K_SEND:
		sent(f, c->res);
		break;
	case K_ACCEPT:
		f->accepting = false;
		if (c->res >= 0) {
			f->acc[f->acc_tail % AHEAD].ring = c->res, f->acc[f->acc_tail % AHEAD].peer = f->peer;
			f->acc_tail++;
			happened(f, EPOLLIN | EPOLLRDNORM);
		} else if (c->res == -EMFILE || c->res == -ENFILE || c->res == -ENOMEM) {
			f->starved = S->starved = true; /* there are as many sockets as may be */
			break;
		}
		arm_later(f);
		break;
	case K_CONNECT:
		if (c->res == 0) {
			f->state = CONNECTED;
			arm_later(f);
			happened(f, EPOLLOUT | EPOLLWRNORM);
		} else {
			f->state = NEW, f->bound = f->has_peer = false;
			f->error = c->res == -ECANCELED ? ENETDOWN : -c->res; /* canceled: the engine ends */
			happened(f, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
		}
		break;
	case K_POLL:
		if (c->res > 0) {
			f->rdhup |= (c->res & EPOLLRDHUP) != 0;
			f->hup |= (c->res & EPOLLHUP) != 0;
			f->hint |= (c->res & EPOLLERR) != 0;
			happened(f, (uint32_t)c->res | EPOLLIN | (f->hup ? EPOLLOUT : 0));
		}
		f->polled = more;
		if (!more && c->res > 0) /* the CQ was full */
			arm_later(f);
		break;
	case K_CLOSE:
		f->ring = -1;
		S->starved = true; /* whoever waited for a number */
		break;
	default:
		break;
	}
	file_free(f);
}

/* revive has those try again who found no request or no memory. */
static void revive(void)
{
	S->starved = false;
	for (uint32_t i = 1; i < S->files; i++)
		if (S->file[i].starved) {
			S->file[i].starved = false;
			arm_later(&S->file[i]);
			happened(&S->file[i], EPOLLOUT | EPOLLWRNORM);
		}
}

bool reap(void)
{
	struct xdpd_cqe c;
	bool any = false;

	while (!S->gone && xdpd_ring_take(&ring, &c)) {
		completed(&c);
		any = true;
	}
	if (any && S->starved)
		revive();
	while (S->todo) {
		struct file *f = &S->file[S->todo];
		S->todo = f->todo == id_of(f) ? 0 : f->todo;
		f->todo = 0;
		arm(f);
	}
	publish();
	return any;
}

/* drop_accepted resets connections that nobody will ask for. */
void drop_accepted(struct file *f)
{
	while (f->acc_head != f->acc_tail) {
		int c = f->acc[f->acc_head++ % AHEAD].ring;
		struct xdpd_sqe *s = request(K_NONE, id_of(f), XDPD_SET_SOCK_OPT, c);
		s->len = SOL_SOCKET, s->op_flags = SO_LINGER, s->off = 1;
		request(K_NONE, id_of(f), XDPD_CLOSE, c);
	}
}

/* fill has the engine put what comes behind what is unread. */
static void fill(struct file *f)
{
	uint32_t used = f->rcv_at + f->rcv_len;
	struct xdpd_sqe *s = request(K_RECV, id_of(f), XDPD_RECV, f->ring);

	s->addr = f->rcv + used, s->len = (4096u << f->rcv_order) - used;
	f->receiving = true;
}

/* look_on is for who looks at what is unread and takes nothing: more joins it, as long as there is room. */
void look_on(struct file *f)
{
	uint8_t order = RCV_ORDER;
	uint32_t larger;

	if (f->udp || !f->rcv_len || f->receiving || f->eof || f->dead || f->shut_rd || f->ring < 0 || S->gone || S->requests + 16 >= S->limit)
		return;
	if (f->rcv_len == 4096u << f->rcv_order && f->rcv_order < order) {
		if (!(larger = mem_get(&order)))
			return;
		if (order <= f->rcv_order) { /* there was nothing larger */
			mem_put(larger, order);
			return;
		}
		memcpy(mem(larger), mem(f->rcv), f->rcv_len);
		mem_put(f->rcv, f->rcv_order);
		f->rcv = larger, f->rcv_order = order;
	} else if (f->rcv_at + f->rcv_len == 4096u << f->rcv_order) {
		memmove(mem(f->rcv), mem(f->rcv) + f->rcv_at, f->rcv_len);
		f->rcv_at = 0;
	}
	if (f->rcv_len < 4096u << f->rcv_order)
		fill(f);
}

/* arm has the engine give what a socket can take: data, connections, the news of its end. */
void arm(struct file *f)
{
	struct xdpd_sqe *s;
	uint32_t id = id_of(f);

	if (f->type != SOCKET || S->gone)
		return;
	if (f->closing) {
		drop_accepted(f);
		return;
	}
	if (f->ring < 0)
		return;
	if (S->requests + 16 >= S->limit) {
		f->starved = S->starved = true;
		return;
	}
	S->changing = id;
	if (f->state == LISTENING && !f->accepting && f->acc_tail - f->acc_head < AHEAD) {
		s = request(K_ACCEPT, id, XDPD_ACCEPT, f->ring);
		s->addr = offset(&f->peer), s->off = sizeof f->peer;
		f->accepting = true;
	}
	if (f->state == CONNECTED && !f->udp && !f->polled && !f->hup) {
		s = request(K_POLL, id, XDPD_POLL_ADD, f->ring);
		s->len = XDPD_POLL_MULTI, s->op_flags = EPOLLRDHUP;
		f->polled = true;
	}
	if (f->state == CONNECTED && !f->udp && !f->receiving && !f->rcv_len && !f->eof && !f->dead && !f->shut_rd) {
		if (f->rcv && f->rcv_order != mem_order(f->rcv_want)) {
			mem_put(f->rcv, f->rcv_order);
			f->rcv = 0;
		}
		if (!f->rcv) {
			f->rcv_order = mem_order(f->rcv_want);
			f->rcv = mem_get(&f->rcv_order);
		}
		if (!f->rcv) {
			f->starved = S->starved = true;
			return;
		}
		f->rcv_at = 0;
		fill(f);
	}
	if (f->udp && f->bound && !f->shut_rd) {
		if (!f->rcv) {
			f->rcv_order = UDP_ORDER;
			f->rcv = mem_get(&f->rcv_order);
		}
		if (f->rcv && f->rcv_order < UDP_ORDER) {
			mem_put(f->rcv, f->rcv_order);
			f->rcv = 0;
		}
		if (!f->rcv) {
			f->starved = S->starved = true;
			return;
		}
		for (; f->rcv_done + f->rcv_armed < DATAGRAMS; f->rcv_armed++) {
			s = request(K_RECV, id, XDPD_RECV_FROM, f->ring);
			s->addr = f->rcv + (f->rcv_first + f->rcv_done + f->rcv_armed) % DATAGRAMS * DATAGRAM, s->len = DATAGRAM;
		}
	}
}

/* lost: the engine is gone, and nothing of it will come any more. */
void lost(void)
{
	if (S->gone)
		return;
	S->gone = true;
	S->requests = 0, S->spare = 0;
	for (uint32_t i = 1; i < S->files; i++) {
		struct file *f = &S->file[i];
		if (f->type != SOCKET)
			continue;
		if (!f->error)
			f->error = f->state == CONNECTED && !f->udp ? ECONNRESET : ENETDOWN;
		if (f->state == CONNECTING)
			f->state = NEW;
		f->rdhup = f->hup = f->broken = f->dead = true;
		f->receiving = f->accepting = f->polled = false;
		f->rcv_armed = f->sends = f->requests = 0;
		f->ring = -1;
		happened(f, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP);
		file_free(f);
	}
	for (int i = 0; i < SLOTS; i++)
		if (S->slots[i].used && !S->slots[i].done) {
			S->slots[i].done = true, S->slots[i].res = -ENETDOWN;
			wake_slot(&S->slots[i]);
		}
}

/* call does a request that the engine answers at once, and waits for the answer: 0 or more, or -errno. like has its fields but the user data. */
int32_t call(struct slot *slot, struct file *f, int32_t fd, int op, struct xdpd_sqe like)
{
	struct xdpd_sqe *s;

	if (S->gone)
		return -ENETDOWN;
	if (f)
		S->changing = id_of(f);
	slot->done = false, slot->gen++;
	s = request(K_CALL, (uint32_t)(slot - S->slots), op, fd);
	like.opcode = s->opcode, like.fd = s->fd, like.user_data = s->user_data;
	*s = like;
	kick();
	reap();
	while (!slot->done && !S->gone)
		rest(slot, NULL, 0, NEVER, NULL);
	return slot->done ? slot->res : -ENETDOWN;
}
